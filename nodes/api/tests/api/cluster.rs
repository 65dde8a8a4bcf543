//! The members' door: who gets in, and who leaves nothing behind.

use crate::common::{Controller, Machine, Session, eventually, options, random};
use cvlan_api::ca::{ANY_MEMBER, Ca, Signer, ca_make, member_name, member_read};
use cvlan_api::cluster::identity::key_sha256;
use cvlan_api::cluster::pin::joiner_config;
use cvlan_api::server::{Options, Running, StartError, start};
use cvlan_core::id::{CommandId, MemberId, TenantId, UserId};
use cvlan_core::machine::SystemFact;
use cvlan_core::member::{MemberCommand, join_token_make, join_token_parse};
use cvlan_core::presence::PresenceCommand;
use cvlan_core::system::SystemCommand;
use cvlan_core::user::UserCommand;
use cvlan_core::{Actor, Command, Meta, Wish};
use cvlan_proto::v1::voter_question::Kind;
use cvlan_proto::v1::{CertificateRequest, JoinTokenClaims};
use cvlan_raft::{FileDisk, MemberError, WriteError};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

async fn admit(admin: &Session<'_>, name: &str) -> String {
    let made = admin.post("/cluster/members", json!({"name": name})).await.expect(201).json();
    assert_eq!(made["member"]["state"], "admitted");
    made["joinToken"].as_str().unwrap().to_owned()
}

fn joining(dir: &Path, token: &str) -> Options {
    Options { join_token: Some(token.to_owned()), advertise_cluster: None, ..options(dir) }
}

async fn refused(dir: &Path, token: &str) -> String {
    match start(joining(dir, token)).await {
        Err(StartError::Join(error)) => error.code().to_owned(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it joined"),
    }
}

fn changed(token: &str, change: impl FnOnce(&mut JoinTokenClaims)) -> String {
    let mut claims = join_token_parse(token).unwrap();
    change(&mut claims);
    join_token_make(&claims)
}

/// The founder, with a door whose address it tells.
async fn founder() -> Controller {
    Controller::with(|dir| Options { advertise_cluster: None, ..options(dir) }).await
}

/// In one process the folder is free once the last connection has let go of the log.
async fn stopped(running: Running, folder: &Path) {
    tokio::time::timeout(Duration::from_secs(20), running.stop()).await.unwrap();
    eventually("the folder is free", || FileDisk::open(folder).is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_one_key_in_and_nothing_else_does() {
    let founder = founder().await;
    let admin = founder.admin().await;
    let token = admit(&admin, "m2").await;
    let other = admit(&admin, "m3").await;
    let seq = founder.seq();
    let dir = tempfile::tempdir().unwrap();

    // Altered, of another member, of another cluster.
    let wrong = changed(&token, |c| c.secret = random::<32>().to_vec());
    assert_eq!(refused(dir.path(), &wrong).await, "join_token_invalid");
    let stolen = join_token_parse(&other).unwrap().secret;
    assert_eq!(refused(dir.path(), &changed(&token, |c| c.secret = stolen)).await, "join_token_invalid");
    assert_eq!(refused(dir.path(), &changed(&token, |c| c.member_id = 1)).await, "join_token_invalid");
    assert_eq!(refused(dir.path(), "cvm_nonsense").await, "join_token_malformed");
    assert_eq!(founder.seq(), seq, "nothing was appended");
    assert!(matches!(start(options(dir.path())).await, Err(StartError::Joining)), "it does not begin a log of its own");

    // The same folder and token again, as after a crash before the last file was there.
    let first = start(joining(dir.path(), &token)).await.unwrap();
    let member = first.app().member;
    assert_eq!(first.app().log.head().epoch, founder.running.app().log.head().epoch);
    stopped(first, dir.path()).await;
    std::fs::remove_file(dir.path().join("keys/identity")).unwrap();
    let second = start(joining(dir.path(), &token)).await.unwrap();
    assert_eq!(second.app().member, member);
    stopped(second, dir.path()).await;
    // Later, without the token.
    let third = start(Options { advertise_cluster: None, ..options(dir.path()) }).await.unwrap();
    assert_eq!(third.app().member, member);
    let address = third.cluster_address().to_string();
    let head = || founder.running.app().log.head();
    eventually("it said where it is", || head().machine.members[&member].address() == address).await;
    eventually("and what it serves", || {
        head().machine.members[&member].api_urls == third.app().api_urls.as_slice().into()
    })
    .await;

    // It follows, and asks one that votes for its certificate: for its own key, and doors of its own, alone.
    let app = third.app();
    assert!(app.vault.get().is_none());
    let own = KeyPair::from_pem(&std::fs::read_to_string(dir.path().join("keys/member.key")).unwrap()).unwrap();
    let ask = async |key: &KeyPair, names: &[&str]| {
        let csr = CertificateParams::default().serialize_request(key).unwrap().der().to_vec();
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let asked = app.voters.ask(Kind::Certificate(CertificateRequest { csr, names }), true).await;
        asked.map(|answer| answer.certificate).map_err(|problem| problem.detail.into_owned())
    };
    let made = ask(&own, &[]).await.unwrap();
    let peer = member_read(&made).unwrap();
    assert!(app.ca.signed(&made) && peer.member == member.0 && peer.key_sha256 == key_sha256(&own));
    let shown = |dir: &Path| {
        let pem = std::fs::read_to_string(dir.join("keys/member.pem")).unwrap();
        member_read(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap()
    };
    assert!(!peer.votes && !shown(dir.path()).votes && shown(founder.dir.path()).votes);
    assert!(member_read(&ask(&own, &["box.example"]).await.unwrap()).is_none());
    let other_key = KeyPair::generate().unwrap();
    for (key, names, code) in [
        (&other_key, &[][..], "csr_invalid"),
        (&own, &["m1.member.cvlan.internal"], "names_refused"),
        (&own, &["box.example", "member.cvlan.internal"], "names_refused"),
    ] {
        let said = ask(key, names).await.unwrap_err();
        assert!(said.contains(code), "{said}");
    }
    // Nor does anyone take keys from it.
    let given = Kind::Keys(founder.running.app().vault.get().unwrap().to_proto());
    let said = app.voters.ask(given, true).await.unwrap_err();
    assert!(said.code == "voter_unreachable" && said.detail.contains("not_a_voter"), "{}", said.detail);

    // What its own doors cannot have proven is not done for it, by whichever of the members' words it asks.
    let root = head().machine.users.values().next().cloned().unwrap();
    let person = Actor::User(root.id, root.name.to_string());
    let (seq, members) = (founder.seq(), head().members.clone());
    let mallory = || {
        Wish::User(UserCommand::Create {
            tenant: TenantId::default(),
            id: UserId(uuid::Uuid::new_v4()),
            name: "mallory".into(),
            role: "superadmin".into(),
            password_hash: root.password_hash.to_string(),
        })
    };
    let advertise = |member| {
        Wish::System(SystemCommand::Advertise { member, node_urls: third.app().node_urls.clone(), api_urls: vec![] })
    };
    let password = UserCommand::Password { id: root.id, password_hash: "$argon2id$".into() };
    let admit = MemberCommand::Admit { name: "m4".into(), secret_hash: [1; 32], life_ms: 3_600_000 };
    let report = PresenceCommand::Report { tenant: TenantId::default(), member: MemberId(1), transitions: vec![] };
    for (actor, wish, command) in [
        (Actor::System, mallory(), "user.create"),
        (person.clone(), mallory(), "user.create"),
        (person.clone(), Wish::User(password), "user.password"),
        (person, Wish::Member(admit), "member.admit"),
        (Actor::System, advertise(MemberId(1)), "system.advertise"),
        (Actor::System, Wish::Presence(report), "presence.report"),
        (Actor::System, Wish::System(SystemCommand::Fact(SystemFact::CheckpointOpened)), "system.fact"),
    ] {
        let meta = Meta { id: CommandId(uuid::Uuid::new_v4()), actor, ..Meta::default() };
        let refused = app.log.write(Command { meta, wish }).await.err();
        assert_eq!(refused, Some(WriteError::NotAllowed { member: member.0, command: command.into() }));
    }
    for refused in [
        app.log.promote(member.0).await,
        app.log.member_remove(1).await,
        app.log.transfer(Some(member.0)).await.map(drop),
        app.log.learner_add(77, "127.0.0.1:1".into()).await,
    ] {
        assert_eq!(refused, Err(MemberError::NotAllowed(member.0)));
    }
    assert_eq!(app.log.checkpoint().await.err().map(|e| e.code()), Some("member_not_allowed"));
    assert_eq!((founder.seq(), head().members.clone()), (seq, members), "nothing was appended");
    let counted = founder.running.app().metrics.render(founder.running.app());
    assert!(counted.contains("\ncvlan_members_not_allowed_total 12\n"), "{counted}");
    // What it says of itself is taken.
    let meta = Meta { id: CommandId(uuid::Uuid::new_v4()), ..Meta::default() };
    let said = app.log.write(Command { meta, wish: advertise(member) }).await.unwrap();
    assert_eq!(said.events.len(), 1);

    // Another key comes too late, and this folder is not another member's.
    let seq = founder.seq();
    let thief = tempfile::tempdir().unwrap();
    assert_eq!(refused(thief.path(), &token).await, "member_other_key");
    stopped(third, dir.path()).await;
    assert_eq!(refused(dir.path(), &other).await, "folder_in_use");
    assert_eq!(founder.seq(), seq, "nothing was appended");
}

struct Shown<'a> {
    certificate: Option<CertificateDer<'static>>,
    key: Option<&'a KeyPair>,
}

/// What the door does with one who shows this, and says it is a member: the first byte, or why there is none.
async fn greeted(
    door: std::net::SocketAddr,
    ca: &CertificateDer<'static>,
    shown: Shown<'_>,
    alpn: &[u8],
) -> Result<u8, String> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).unwrap();
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let mut config = match (shown.certificate, shown.key) {
        (Some(certificate), Some(key)) => {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
            builder.with_client_auth_cert(vec![certificate], key).unwrap()
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let tcp = TcpStream::connect(door).await.unwrap();
    let name = ServerName::try_from(member_name(1)).unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|e| e.to_string())?;
    // Nowhere is it reached itself.
    stream.write_u8(0).await.map_err(|e| e.to_string())?;
    tokio::time::timeout(Duration::from_secs(10), stream.read_u8()).await.unwrap().map_err(|e| e.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_certificate_opens_the_members_door_nor_a_members_another() {
    let founder = founder().await;
    let admin = founder.admin().await;
    admin.acme().await;
    let token = admin.token(5).await;
    let machine = Machine::new("a");
    let registered = machine.register(&founder, &token).await;
    let node = CertificateDer::from_pem_slice(registered.certificate.as_bytes()).unwrap();

    let read = |name: &str| std::fs::read_to_string(founder.dir.path().join("keys").join(name)).unwrap();
    let ca = CertificateDer::from_pem_slice(read("ca.pem").as_bytes()).unwrap();
    let signer = |key: &str, der: &[u8]| Signer::open(key, Arc::new(Ca::read(der).unwrap())).unwrap();
    let own_ca = signer(&read("ca.key"), &ca);
    let (foreign_key, foreign_der) = ca_make(1_700_000_000_000).unwrap();
    let foreign_ca = signer(&foreign_key, &foreign_der);
    let now = cvlan_api::app::now_ms();
    let key = KeyPair::generate().unwrap();
    let founders_key = KeyPair::from_pem(&read("member.key")).unwrap();
    let seq = founder.seq();
    let door = founder.running.cluster_address();
    const MEMBER: &[u8] = b"cvlan-member/1";
    let check = async |what: &str,
                       certificate: Option<CertificateDer<'static>>,
                       key: &KeyPair,
                       alpn: &[u8],
                       wanted: Option<u8>| {
        let got = greeted(door, &ca, Shown { certificate, key: Some(key) }, alpn).await;
        assert_eq!(got.as_ref().ok(), wanted.as_ref(), "{what}: {got:?}");
    };
    let member = |ca: &Signer, id: u64, key: &KeyPair| Some(ca.member(id, key, now).unwrap());
    check("itself", member(&own_ca, 1, &founders_key), &founders_key, MEMBER, Some(0)).await;
    check("nothing", None, &key, MEMBER, None).await;
    check("a node's", Some(node.clone()), &machine.key, MEMBER, None).await;
    check("another CA's", member(&foreign_ca, 1, &key), &key, MEMBER, None).await;
    check("another key of this member", member(&own_ca, 1, &key), &key, MEMBER, None).await;
    check("one that was never admitted", member(&own_ca, 2, &key), &key, MEMBER, Some(1)).await;
    check(
        "an expired one",
        Some(own_ca.member(1, &founders_key, 1_000_000_000_000).unwrap()),
        &founders_key,
        MEMBER,
        None,
    )
    .await;
    const REBUILD: &[u8] = b"cvlan-rebuild/1";
    check("nothing, to be rebuilt", None, &key, REBUILD, None).await;
    check("another CA's, to be rebuilt", member(&foreign_ca, 1, &key), &key, REBUILD, None).await;
    check("a node's, to be rebuilt", Some(node.clone()), &machine.key, REBUILD, None).await;
    const VOTER: &[u8] = b"cvlan-voter/1";
    check("nothing, for keys", None, &key, VOTER, None).await;
    check("another CA's, for keys", member(&foreign_ca, 1, &key), &key, VOTER, None).await;
    check("a node's, for keys", Some(node.clone()), &machine.key, VOTER, None).await;
    check("another key of this member, for keys", member(&own_ca, 1, &key), &key, VOTER, None).await;
    check("one that was never admitted, for keys", member(&own_ca, 2, &key), &key, VOTER, None).await;
    check("another protocol", member(&own_ca, 1, &founders_key), &founders_key, b"http/1.1", None).await;

    // A member's at the machines' door is no node's.
    let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(member(&own_ca, 1, &founders_key).unwrap())
    });
    let tls = crate::common::tls_connect(&founder, Some((&pem, &founders_key))).await.unwrap();
    let answer = crate::common::Sync::upgrade(tls).await.err().unwrap();
    assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("certificate_invalid"), "{answer}");
    assert_eq!(founder.seq(), seq, "nothing was appended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_that_talks_nonsense_is_dropped() {
    let founder = founder().await;
    let seq = founder.seq();
    let pin = cvlan_api::cluster::pin::spki_sha256(
        &CertificateDer::from_pem_slice(founder.running.ca_pem().as_bytes()).unwrap(),
    );
    for nonsense in
        [&b"\xff\xff\xff\xff"[..], b"\x04\x00\x00\x00\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"GET / HTTP/1.1\r\n\r\n"]
    {
        let tcp = TcpStream::connect(founder.running.cluster_address()).await.unwrap();
        let name = ServerName::try_from(ANY_MEMBER).unwrap();
        let connector = TlsConnector::from(joiner_config(pin.unwrap()).unwrap());
        let mut stream = connector.connect(name, tcp).await.unwrap();
        stream.write_all(nonsense).await.unwrap();
        let mut said = Vec::new();
        // Closed, or a refusal; never a key.
        let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut said)).await.unwrap();
        assert!(!String::from_utf8_lossy(&said).contains("PRIVATE KEY"), "{said:?}");
    }
    assert_eq!(founder.seq(), seq, "nothing was appended");
}
