//! What a member answers over `cvlan-voter/1`, to another member whose certificate and standing are proven.
//!
//! ```text
//!  ForwardedRequest   keys here? ─► this member's own router, as if it had come to its door ─► answer
//!  CertificateRequest keys here? ─► signed by its own key? ─► the asking member's, or its doors', under names of its own
//!  ClusterKeys        of one who votes? ─► those of this log? ─► keys/, durable ─► a certificate that says so
//!  TreeHeadRequest    this one votes? ─► what its own log comes to there, signed
//! ```
//! A forwarded request brings the caller's credentials, and nothing else counts: what the member that forwards it is allowed
//! to do gives it no right. Only where it came from, for limits and audit, is taken on that member's word.

use super::identity::certified;
use super::join::{QUESTION_TIME, message_read, message_write};
use super::notary::Notary;
use super::vault::{Vault, elsewhere};
use super::{Standing, standing};
use crate::Log;
use crate::app::now_ms;
use crate::app::token::host_of;
use crate::ca::{ANY_MEMBER, Csr, Host, Live, MemberPeer, pem_of};
use crate::doors::accept::Client;
use crate::doors::body::BODY_MAX;
use crate::keys::Keys;
use crate::problem::Problem;
use axum::Router;
use axum::body::Body;
use cvlan_core::State;
use cvlan_core::id::MemberId;
use cvlan_proto::v1::voter_question::Kind;
use cvlan_proto::v1::{CertificateRequest, ClusterKeys, ForwardedHeader, ForwardedRequest, VoterAnswer, VoterQuestion};
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// The longest question: a body and its head.
pub const QUESTION_MAX: usize = BODY_MAX + (128 << 10);
/// The longest answer.
pub const ANSWER_MAX: usize = 2 << 20;
/// Of which the body is.
const ANSWER_BODY_MAX: usize = ANSWER_MAX - (128 << 10);
/// An answer may take a write, a wait for a leader, and a turn for a password.
pub const ANSWER_TIME: Duration = Duration::from_secs(20);
/// Names in a certificate, and bytes of one.
const NAMES_MAX: usize = 64;
const NAME_MAX: usize = 253;

/// The doors' routers.
pub struct Routers {
    /// REST.
    pub rest: Router,
    /// Machines.
    pub node: Router,
}

/// What it answers with.
pub struct Answers {
    /// The log.
    pub log: Log,
    /// DATA/keys.
    pub keys: Keys,
    /// The cluster's keys, where they are here.
    pub vault: Arc<Vault>,
    /// What this member shows to others.
    pub own: Arc<Live>,
    /// Signs what this member's log comes to.
    pub notary: Arc<Notary>,
    /// Filled as soon as the doors are open.
    pub routers: Arc<OnceLock<Routers>>,
}

/// Serves one question.
pub async fn serve(
    answers: &Answers,
    peer: MemberPeer,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<()> {
    let question: VoterQuestion = timeout(QUESTION_TIME, message_read(&mut stream, QUESTION_MAX)).await??;
    let answer = match timeout(ANSWER_TIME, answers.answer(&peer, question)).await {
        Ok(Ok(answer)) => answer,
        // Whether it was done, or what came of it, cannot be told: say nothing.
        Ok(Err(Not::Told(why))) => return Err(io::Error::other(why)),
        Ok(Err(Not::Done(problem))) => {
            let (member, code) = (peer.member, problem.code);
            tracing::warn!(member, code, detail = %problem.detail, "a member was refused what takes keys");
            VoterAnswer { refused: code.to_owned(), detail: problem.detail.into_owned(), ..VoterAnswer::default() }
        }
        Err(slow) => return Err(slow.into()),
    };
    timeout(QUESTION_TIME, message_write(&mut stream, &answer)).await??;
    stream.shutdown().await
}

/// Why there is no answer.
enum Not {
    /// It was not done: the next voter may be asked.
    Done(Problem),
    /// It may have been done.
    Told(String),
}

impl From<Problem> for Not {
    fn from(problem: Problem) -> Self {
        Self::Done(problem)
    }
}

impl Answers {
    async fn answer(&self, peer: &MemberPeer, question: VoterQuestion) -> Result<VoterAnswer, Not> {
        match question.kind {
            Some(Kind::Request(request)) => self.request(request).await,
            Some(Kind::Certificate(wanted)) => Ok(self.certificate(peer, &wanted).await?),
            Some(Kind::Keys(given)) => Ok(self.keys(peer, given).await?),
            Some(Kind::TreeHead(asked)) => {
                let note = self.notary.answer(&asked).await?.to_string();
                Ok(VoterAnswer { note, ..VoterAnswer::default() })
            }
            None => Err(Problem::invalid("question_unknown", "this member does not know that question").into()),
        }
    }

    async fn request(&self, asked: ForwardedRequest) -> Result<VoterAnswer, Not> {
        // One that has none, or does not vote, would only pass it on.
        self.vault.need_voting(&self.log)?;
        let routers = self.routers.get().ok_or_else(elsewhere)?;
        let router = if asked.machines { routers.node.clone() } else { routers.rest.clone() };
        let request = request(asked).ok_or_else(|| Problem::invalid("request_invalid", "that is no request"))?;
        // A router answers everything.
        let answered = TowerToHyperService::new(router).call(request).await;
        let (parts, body) = answered.map_err(|e| Not::Told(e.to_string()))?.into_parts();
        let body = axum::body::to_bytes(body, ANSWER_BODY_MAX).await.map_err(|e| Not::Told(e.to_string()))?;
        let header = |(name, value): (&HeaderName, &HeaderValue)| ForwardedHeader {
            name: name.as_str().to_owned(),
            value: value.as_bytes().to_vec(),
        };
        Ok(VoterAnswer {
            status: u32::from(parts.status.as_u16()),
            headers: parts.headers.iter().map(header).collect(),
            body: body.to_vec(),
            ..VoterAnswer::default()
        })
    }

    async fn certificate(&self, peer: &MemberPeer, wanted: &CertificateRequest) -> Result<VoterAnswer, Problem> {
        let secrets = self.vault.need()?;
        // This one may be behind, or cut off: who was removed meanwhile gets none.
        self.log.linearize().await?;
        let head = self.log.head();
        if !matches!(standing(&head, peer), Standing::Member) {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "member_gone",
                "this member was removed, or has another key",
            ));
        }
        let csr = Csr::read(&pem_of("CERTIFICATE REQUEST", &wanted.csr))?;
        let made = if wanted.names.is_empty() {
            if csr.key_sha256 != peer.key_sha256 {
                return Err(Problem::invalid("csr_invalid", "the request is of another key than the certificate"));
            }
            secrets.signer.member(peer.member, csr.key(), now_ms())
        } else {
            let names = names_check(&head.machine, MemberId(peer.member), &wanted.names)?;
            secrets.signer.server(&names, csr.key(), now_ms())
        };
        let certificate = made.map_err(Problem::internal)?.to_vec();
        tracing::info!(member = peer.member, names = ?wanted.names, "a certificate for a member that follows");
        Ok(VoterAnswer { certificate, ..VoterAnswer::default() })
    }

    async fn keys(&self, peer: &MemberPeer, given: ClusterKeys) -> Result<VoterAnswer, Problem> {
        let head = self.log.head();
        if !head.members.voters.iter().any(|set| set.contains(&peer.member)) {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "not_a_voter",
                "only a member that votes has keys to give",
            ));
        }
        let (vault, keys, member) = (self.vault.clone(), self.keys.clone(), self.log.status().member);
        let certified = tokio::task::spawn_blocking(move || {
            let secrets = vault.receive(&keys, &head.machine, &given)?;
            let signer = &secrets.signer;
            certified(&keys, signer.ca(), Some(signer), member, now_ms()).map_err(Problem::internal)
        });
        self.own.set(certified.await.map_err(Problem::internal)??);
        // Over those that prove less its first vote would be lost.
        self.log.connections_renew();
        Ok(VoterAnswer::default())
    }
}

fn request(asked: ForwardedRequest) -> Option<Request<Body>> {
    let mut request = Request::new(Body::from(asked.body));
    *request.method_mut() = Method::from_bytes(asked.method.as_bytes()).ok()?;
    *request.uri_mut() = asked.path.parse::<Uri>().ok().filter(|uri| uri.path().starts_with('/'))?;
    for ForwardedHeader { name, value } in &asked.headers {
        let (name, value) = (HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(value).ok()?);
        request.headers_mut().append(name, value);
    }
    let address: IpAddr = asked.source.parse().ok()?;
    request.extensions_mut().insert(Arc::new(Client { address, certificate: None }));
    Some(request)
}

/// A member's doors are not under what it would prove itself as to other members, nor under the name of another one's.
/// Returns them, each written in one way.
fn names_check(state: &State, id: MemberId, names: &[String]) -> Result<Vec<String>, Problem> {
    let refused = |detail: String| Err(Problem::new(StatusCode::FORBIDDEN, "names_refused", detail));
    if names.len() > NAMES_MAX {
        return refused(format!("more than {NAMES_MAX} names"));
    }
    let hosts = |member: &cvlan_core::member::Member| -> Vec<Host> {
        let urls = member.node_urls.iter().chain(member.api_urls.iter());
        let doors = urls.filter_map(|url| host_of(url)).map(Host::of);
        doors.chain(member.address().rsplit_once(':').map(|(host, _)| Host::of(host))).collect()
    };
    let own = state.members.get(&id).map(|m| hosts(m)).unwrap_or_default();
    let others: Vec<Host> = state.members.values().filter(|m| m.id != id).flat_map(|m| hosts(m)).collect();
    let mut written = Vec::with_capacity(names.len());
    for name in names {
        let host = Host::of(name);
        let (fits, here, text) = match &host {
            Host::Address(ip) => (true, ip.is_loopback(), ip.to_string()),
            Host::Name(name) => (is_dns(name) && !name.ends_with(ANY_MEMBER), name == "localhost", name.clone()),
        };
        if !fits {
            return refused(format!("{name:?} is no name of a door"));
        }
        if !here && !own.contains(&host) && others.contains(&host) {
            return refused(format!("{name} is another member's"));
        }
        written.push(text);
    }
    Ok(written)
}

fn is_dns(name: &str) -> bool {
    let label = |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    name.len() <= NAME_MAX && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cvlan_core::id::Seq;
    use cvlan_core::member::{Joined, Member};

    #[test]
    fn doors_have_names_of_their_own() {
        let member = |id: u64, host: &str| {
            let address = format!("{host}:8445").into();
            let joined = Joined { key_sha256: [0; 32], address, version: "".into(), note_key: None, joined_ms: 0 };
            let api_urls = [format!("https://{host}:8443"), "https://cvlan.example".to_owned()];
            let member = Member {
                id: MemberId(id),
                name: host.into(),
                admission: None,
                joined: Some(joined),
                node_urls: [].into(),
                api_urls: api_urls.into(),
                revision: Seq(1),
            };
            (MemberId(id), Arc::new(member))
        };
        let members = [(1, "m1.example"), (2, "10.0.0.1"), (3, "[2001:db8::1]"), (5, "m5.example")];
        let members = members.into_iter().map(|(id, host)| member(id, host)).collect();
        let state = State { members, ..State::default() };
        let check = |name: &str| names_check(&state, MemberId(5), &[name.to_owned()]).map_err(|p| p.code);
        for (good, written) in [
            ("localhost", "localhost"),
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
            ("m5.example", "m5.example"),
            ("M5.example.", "m5.example"),
            ("cvlan.example", "cvlan.example"),
            ("10.0.0.7", "10.0.0.7"),
            ("[2001:DB8:0:0::6]", "2001:db8::6"),
            ("box", "box"),
        ] {
            assert_eq!(check(good), Ok(vec![written.to_owned()]), "{good}");
        }
        for bad in [
            "m1.example",
            "M1.Example",
            "m1.example.",
            "10.0.0.1",
            "10.0.0.1.",
            "::ffff:10.0.0.1",
            "2001:db8::1",
            "2001:DB8:0:0:0::1",
            "[2001:db8::1]",
            "m1.example..",
            ".m1.example",
            "a:b",
            "m1.member.cvlan.internal",
            "m5.member.cvlan.internal",
            "member.cvlan.internal",
            "member.cvlan.internal.",
            "*.example",
            "",
            "a b",
            &"x".repeat(NAME_MAX + 1),
        ] {
            assert_eq!(check(bad), Err("names_refused"), "{bad:?}");
        }
        let many = vec!["a".to_owned(); NAMES_MAX + 1];
        assert!(names_check(&state, MemberId(5), &many).is_err());
    }

    #[test]
    fn what_is_no_request_is_none() {
        let good = ForwardedRequest {
            method: "POST".into(),
            path: "/api/v1/auth/login?x=1".into(),
            source: "10.0.0.1".into(),
            headers: vec![ForwardedHeader { name: "accept".into(), value: b"a".to_vec() }],
            ..ForwardedRequest::default()
        };
        let made = request(good.clone()).unwrap();
        assert_eq!((made.uri().path(), made.headers()["accept"].as_bytes()), ("/api/v1/auth/login", &b"a"[..]));
        let header = |name: &str, value: &[u8]| vec![ForwardedHeader { name: name.into(), value: value.to_vec() }];
        for (what, bad) in [
            ("method", ForwardedRequest { method: "P T".into(), ..good.clone() }),
            ("path", ForwardedRequest { path: "a b".into(), ..good.clone() }),
            ("host", ForwardedRequest { path: "other:80".into(), ..good.clone() }),
            ("source", ForwardedRequest { source: String::new(), ..good.clone() }),
            ("header", ForwardedRequest { headers: header("a b", b""), ..good.clone() }),
            ("value", ForwardedRequest { headers: header("a", b"\n"), ..good.clone() }),
        ] {
            assert!(request(bad).is_none(), "{what}");
        }
    }
}
