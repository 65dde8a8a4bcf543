//! Random but reproducible histories: a generator for every command, for properties, simulation and load.
//!
//! Commands are drawn against the state, so that most are sensible, and on purpose some are not: names that exist,
//! ranges that overlap, things that are gone. One seed, one history.

use crate::Rules;
use crate::command::{Actor, Command, Meta, Wish};
use crate::cvlan::CvlanCommand;
use crate::id::{CommandId, CvlanId, Epoch, KeyId, MemberId, NodeId, TenantId, TokenId, UserId};
use crate::idempotency::{Idempotency, KEPT_MS};
use crate::machine::{Machine as _, Once};
use crate::member::{MEMBERS_MAX, MemberCommand, URLS_TOTAL_BYTES, URLS_TOTAL_MAX};
use crate::node::{Device, Machine, NodeCommand, Register};
use crate::presence::{PresenceCommand, Transition};
use crate::state::{State, TenantState};
use crate::system::{Bootstrap, SystemCommand};
use crate::tenant::{SigningKey, TenantCommand};
use crate::token::TokenCommand;
use crate::user::UserCommand;
use cvlan_proto::v1::{Event, JwtKey, Sealed};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

/// SplitMix64 (Steele, Lea, Flood 2014): small, seedable, the same everywhere.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// 64 random bits.
    #[allow(clippy::should_implement_trait)] // It never ends, and has no Option to say so.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n` (0 where `n` is 0).
    pub fn below(&mut self, n: u64) -> u64 {
        self.next().checked_rem(n).unwrap_or_default()
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Random bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }

    /// A random UUID.
    pub fn uuid(&mut self) -> Uuid {
        Uuid::from_bytes(self.bytes())
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, from: impl ExactSizeIterator<Item = &'a T>) -> Option<&'a T> {
        let n = from.len() as u64;
        let at = self.below(n) as usize;
        from.into_iter().nth(at)
    }
}

/// Names of the generators below, one for every kind of command.
pub const KINDS: [&str; 23] = [
    "bootstrap",
    "advertise",
    "tenant_create",
    "tenant_update",
    "tenant_delete",
    "cvlan_create",
    "cvlan_update",
    "cvlan_delete",
    "node_create",
    "node_register",
    "node_update",
    "node_endpoints",
    "node_delete",
    "token_create",
    "token_delete",
    "member_admit",
    "member_join",
    "member_announce",
    "member_remove",
    "member_rebuild",
    "user",
    "presence_report",
    "presence_expire",
];

/// Draws commands.
#[derive(Clone, Debug)]
pub struct Grammar {
    rng: Rng,
    /// Chance of each kind, by [`KINDS`]; they add up to anything.
    pub weights: [u64; KINDS.len()],
    /// Registrations made before, to be repeated.
    registered: Vec<Register>,
    /// Commands with a key made before, to be repeated.
    keyed: Vec<(&'static str, Command)>,
    /// Draws keys: histories without them stay what they were.
    keys: Rng,
}

/// The first of the members that nobody is.
const ABSENT: MemberId = MemberId(1 << 62);

/// Commands with a key that are remembered.
const KEYED_MAX: usize = 64;

impl Grammar {
    /// The history of this seed.
    pub fn new(seed: u64) -> Self {
        let weights = [1, 2, 3, 2, 1, 6, 2, 2, 25, 20, 10, 12, 14, 6, 2, 2, 3, 1, 1, 1, 4, 10, 1];
        let keys = Rng(seed.rotate_left(32) ^ 0x6b65_7973);
        Self { rng: Rng(seed), weights, registered: Vec::new(), keyed: Vec::new(), keys }
    }

    /// The first command of a log.
    pub fn bootstrap(&mut self) -> Command {
        let sealed = Sealed { key_id: "k1".into(), nonce: vec![1; 24], ciphertext: vec![2; 48] };
        let bootstrap = Bootstrap {
            epoch: Epoch(self.rng.bytes()),
            ca_certificate: vec![0x30; 16],
            challenge_public_key: self.rng.bytes(),
            challenge_key: sealed.clone(),
            jwt_key: JwtKey { kid: "j1".into(), secret: Some(sealed) },
            admin_id: UserId(self.rng.uuid()),
            admin_name: "admin".into(),
            admin_password_hash: "$argon2id$".into(),
        };
        self.wish(Wish::System(SystemCommand::Bootstrap(Box::new(bootstrap))))
    }

    /// The next command, and which generator made it; some have a caller's key, and some are one of those again.
    pub fn next(&mut self, state: &State) -> (&'static str, Command) {
        let known = self.keyed.len() as u64;
        if known > 0 && self.keys.one_in(16) {
            let at = self.keys.below(known) as usize;
            if let Some((name, command)) = self.keyed.get(at) {
                return (name, self.again(command.clone()));
            }
        }
        let (name, mut command) = self.drawn(state);
        if self.keys.one_in(5) {
            // Few keys, so that some were used for something else.
            let key = format!("k{}", self.keys.below(256));
            command.meta.idempotency = Some(Idempotency { key, body_hash: self.keys.bytes() });
            if self.keyed.len() == KEYED_MAX {
                self.keyed.remove(0);
            }
            self.keyed.push((name, command.clone()));
        }
        (name, command)
    }

    /// The same request as a door makes a command of it when it comes again; now and then another one with that key.
    fn again(&mut self, mut command: Command) -> Command {
        command.meta.id = CommandId(self.keys.uuid());
        if self.keys.one_in(8)
            && let Some(given) = &mut command.meta.idempotency
        {
            given.body_hash = self.keys.bytes();
        }
        command
    }

    fn drawn(&mut self, state: &State) -> (&'static str, Command) {
        let mut at = self.rng.below(self.weights.iter().sum());
        let mut kind = KINDS.len() - 1;
        for (i, weight) in self.weights.iter().enumerate() {
            if at < *weight {
                kind = i;
                break;
            }
            at -= weight;
        }
        let name = KINDS.get(kind).copied().unwrap_or_default();
        let command = self.of_kind(name, state);
        (name, command)
    }

    fn of_kind(&mut self, kind: &str, state: &State) -> Command {
        let tenant = self.tenant(state);
        let id = tenant.as_ref().map(|t| t.record.id).unwrap_or(TenantId(self.rng.uuid()));
        let wish = match kind {
            "bootstrap" => return self.bootstrap(),
            "advertise" => Wish::System(SystemCommand::Advertise {
                member: self.member(state),
                node_urls: vec![format!("https://n{}.example:8444", self.rng.below(3))],
                api_urls: vec!["https://a.example:8443".to_owned()],
            }),
            "tenant_create" => Wish::Tenant(TenantCommand::Create {
                id: TenantId(self.rng.uuid()),
                slug: self.name("t", 8),
                name: String::new(),
                key: SigningKey {
                    id: KeyId(self.rng.uuid()),
                    public_key: self.rng.bytes(),
                    seed: Some(Sealed { key_id: "k1".into(), nonce: vec![3; 24], ciphertext: vec![4; 48] }),
                },
            }),
            "tenant_update" => Wish::Tenant(TenantCommand::Update { id, name: Some(self.name("T", 4)) }),
            "tenant_delete" => Wish::Tenant(TenantCommand::Delete { id }),
            "cvlan_create" => self.cvlan_create(id),
            "cvlan_update" => {
                let name = Some(self.name("c", 12));
                Wish::Cvlan(CvlanCommand::Update { tenant: id, id: self.cvlan(tenant.as_deref()), name })
            }
            "cvlan_delete" => Wish::Cvlan(CvlanCommand::Delete { tenant: id, id: self.cvlan(tenant.as_deref()) }),
            "node_create" => self.node_create(id, tenant.as_deref()),
            "node_register" => return self.register(id, tenant.as_deref()),
            "node_update" => {
                let status = ["active", "disabled", "asleep"].get(self.rng.below(3) as usize).map(|s| (*s).to_owned());
                let name = self.rng.one_in(2).then(|| self.name("n", 64));
                Wish::Node(NodeCommand::Update { tenant: id, id: self.node(tenant.as_deref()), name, status })
            }
            "node_endpoints" => return self.endpoints(id, tenant.as_deref()),
            "node_delete" => Wish::Node(NodeCommand::Delete { tenant: id, id: self.node(tenant.as_deref()) }),
            "token_create" => self.token_create(id, tenant.as_deref()),
            "token_delete" => {
                let token = tenant
                    .as_ref()
                    .and_then(|t| self.rng.pick(t.tokens.keys().copied().collect::<Vec<_>>().iter()).copied());
                Wish::Token(TokenCommand::Delete { tenant: id, id: token.unwrap_or_default() })
            }
            "member_admit" => Wish::Member(MemberCommand::Admit {
                name: self.name("m", 8),
                secret_hash: self.rng.bytes(),
                life_ms: 60_000 + self.rng.below(3_600_000),
            }),
            "member_join" => self.member_join(state),
            "member_announce" => {
                let (id, key) = (self.member(state), self.rng.below(8) as u8);
                Wish::Member(MemberCommand::Announce {
                    id,
                    key_sha256: [key; 32],
                    address: self.address(),
                    version: format!("0.{}.0", self.rng.below(3)),
                    note_key: (key % 2 == 0).then_some([key; 32]),
                })
            }
            "member_remove" => Wish::Member(MemberCommand::Remove { id: self.member(state) }),
            "member_rebuild" => self.member_rebuild(state),
            "presence_report" => self.presence_report(state, id, tenant.as_deref()),
            "presence_expire" => Wish::Presence(PresenceCommand::Expire { member: self.absent() }),
            _ => self.user(state, id),
        };
        self.wish(wish)
    }

    fn wish(&mut self, wish: Wish) -> Command {
        let meta = Meta { id: CommandId(self.rng.uuid()), actor: Actor::System, ..Meta::default() };
        Command { meta, wish }
    }

    /// The same command under a once-only number.
    pub fn numbered(mut command: Command, session: u64, n: u64) -> Command {
        command.meta.once = Some(Once { session, n });
        command
    }

    fn name(&mut self, prefix: &str, of: u64) -> String {
        // Now and then one that is refused.
        if self.rng.one_in(40) { "Not A Name".to_owned() } else { format!("{prefix}{}", self.rng.below(of)) }
    }

    fn tenant(&mut self, state: &State) -> Option<Arc<TenantState>> {
        let all: Vec<_> = state.tenants.values().collect();
        self.rng.pick(all.iter()).map(|t| (*t).clone())
    }

    fn cvlan(&mut self, tenant: Option<&TenantState>) -> CvlanId {
        let all: Vec<_> = tenant.into_iter().flat_map(|t| t.cvlans.keys().copied()).collect();
        self.rng.pick(all.iter()).copied().unwrap_or_default()
    }

    fn node(&mut self, tenant: Option<&TenantState>) -> NodeId {
        let all: Vec<_> = tenant.into_iter().flat_map(|t| t.nodes.keys().copied()).collect();
        self.rng.pick(all.iter()).copied().unwrap_or_default()
    }

    fn member(&mut self, state: &State) -> MemberId {
        // Now and then one that never was.
        let all: Vec<_> = state.members.keys().copied().collect();
        self.rng.pick(all.iter()).copied().filter(|_| !self.rng.one_in(20)).unwrap_or_default()
    }

    fn address(&mut self) -> String {
        if self.rng.one_in(20) { "nowhere".to_owned() } else { format!("192.0.2.{}:8445", self.rng.below(9) + 1) }
    }

    fn member_join(&mut self, state: &State) -> Wish {
        let id = self.member(state);
        let known = state.members.get(&id).and_then(|m| Some(m.admission.as_ref()?.secret_hash));
        Wish::Member(MemberCommand::Join {
            id,
            secret_hash: known.filter(|_| !self.rng.one_in(8)).unwrap_or([9; 32]),
            // Few keys, so that some are another member's, and some are the member's own again.
            key_sha256: [self.rng.below(8) as u8; 32],
            address: self.address(),
            version: "0.1.0".to_owned(),
        })
    }

    fn member_rebuild(&mut self, state: &State) -> Wish {
        let id = self.member(state);
        let known = state.members.get(&id).and_then(|m| Some(m.joined.as_ref()?.key_sha256));
        Wish::Member(MemberCommand::Rebuild {
            id,
            key_sha256: known.filter(|_| !self.rng.one_in(8)).unwrap_or([9; 32]),
            // Few, so that some were used before.
            secret_hash: [self.rng.below(4) as u8; 32],
            address: if self.rng.one_in(2) { String::new() } else { self.address() },
            version: "0.1.0".to_owned(),
        })
    }

    fn cvlan_create(&mut self, tenant: TenantId) -> Wish {
        // Small ranges, so that they overlap, fill up and are used again.
        let ipv4 = match self.rng.below(4) {
            0 => String::new(),
            1 => format!("10.0.{}.0/28", self.rng.below(4)),
            2 => format!("10.0.0.{}/29", self.rng.below(32) * 8),
            _ => format!("10.{}.0.0/16", self.rng.below(3)),
        };
        let ipv6 = ["", "auto", "fd00:1::/120", "fd00:1::/64"].get(self.rng.below(4) as usize).map_or("", |s| s);
        Wish::Cvlan(CvlanCommand::Create {
            tenant,
            id: CvlanId(self.rng.uuid()),
            name: self.name("c", 12),
            ipv4,
            ipv6: ipv6.to_owned(),
            global_id: self.rng.bytes(),
        })
    }

    fn node_create(&mut self, tenant: TenantId, home: Option<&TenantState>) -> Wish {
        let count = if self.rng.one_in(4) { self.rng.below(6) } else { 1 };
        let devices = (0..count).map(|_| Device {
            cvlan: self.cvlan(home),
            id: NodeId(self.rng.uuid()),
            name: self.name("n", 64),
            wg_key: if self.rng.one_in(20) { [0; 32] } else { self.rng.bytes() },
            tags: vec![self.name("tag", 3)],
            endpoints: vec![format!("192.0.2.{}:51820", 1 + self.rng.below(250))],
        });
        Wish::Node(NodeCommand::Create { tenant, devices: devices.collect() })
    }

    fn register(&mut self, tenant: TenantId, home: Option<&TenantState>) -> Command {
        let known = self.registered.len() as u64;
        let again = (known > 0 && self.rng.one_in(4)).then(|| self.rng.below(known) as usize);
        let register = match again.and_then(|i| self.registered.get(i).cloned()) {
            Some(mut same) => {
                same.id = NodeId(self.rng.uuid());
                match self.rng.below(4) {
                    0 => same.nonce = self.rng.bytes(),
                    1 => same.csr_key_hash = self.rng.bytes(),
                    _ => {}
                }
                same
            }
            None => {
                let tokens: Vec<_> = home.into_iter().flat_map(|t| t.tokens.values()).collect();
                let token = self.rng.pick(tokens.iter()).map(|t| (t.id, t.key)).unwrap_or_default();
                Register {
                    id: NodeId(self.rng.uuid()),
                    tenant,
                    token: token.0,
                    key: token.1,
                    wg_key: self.rng.bytes(),
                    csr_key_hash: self.rng.bytes(),
                    nonce: self.rng.bytes(),
                    device_binding: self.rng.bytes(),
                    machine: Machine { hostname: self.name("host", 8), ..Machine::default() },
                }
            }
        };
        if self.registered.len() < 256 {
            self.registered.push(register.clone());
        }
        let actor = Actor::Token(register.token);
        let mut command = self.wish(Wish::Node(NodeCommand::Register(Box::new(register))));
        command.meta.actor = actor;
        command
    }

    fn endpoints(&mut self, tenant: TenantId, home: Option<&TenantState>) -> Command {
        let id = self.node(home);
        let endpoints =
            (0..self.rng.below(3)).map(|_| format!("198.51.100.{}:51820", 1 + self.rng.below(250))).collect();
        let mut command = self.wish(Wish::Node(NodeCommand::Endpoints { tenant, id, endpoints }));
        command.meta.actor = Actor::Node(id, "n".to_owned());
        command
    }

    /// Few members, and none that anybody is: what real ones say is not contradicted for good.
    fn absent(&mut self) -> MemberId {
        MemberId(ABSENT.0 + self.rng.below(4))
    }

    /// Few sessions, so that old ones come again; most ends are of the session that the node has.
    fn presence_report(&mut self, state: &State, tenant: TenantId, home: Option<&TenantState>) -> Wish {
        let mut member = self.absent();
        let transitions = (0..self.rng.below(5)).map(|_| {
            let (node, online) = (self.node(home), self.rng.one_in(2));
            let mut session = self.rng.below(16);
            let known = state.presence(node).filter(|p| p.member >= ABSENT);
            if let Some(has) = known.filter(|_| !online && !self.rng.one_in(4)) {
                (member, session) = (has.member, has.session);
            }
            Transition { node, session, online }
        });
        let transitions = transitions.collect();
        Wish::Presence(PresenceCommand::Report { tenant, member, transitions })
    }

    fn token_create(&mut self, tenant: TenantId, home: Option<&TenantState>) -> Wish {
        let key = home.and_then(|t| t.record.signing_keys.first()).map(|k| k.id).unwrap_or_default();
        Wish::Token(TokenCommand::Create {
            tenant,
            cvlan: self.cvlan(home),
            id: TokenId(self.rng.uuid()),
            key,
            tags: Vec::new(),
            max_uses: self.rng.below(6) as u32,
            life_ms: 60_000 + self.rng.below(3_600_000),
            note: String::new(),
        })
    }

    fn user(&mut self, state: &State, tenant: TenantId) -> Wish {
        let users: Vec<_> = state.users.values().collect();
        let some = self.rng.pick(users.iter()).map(|u| (u.tenant, u.id)).unwrap_or_default();
        Wish::User(match self.rng.below(4) {
            0 | 1 => {
                let role = ["tenantadmin", "member", "readonly", "auditor", "superadmin", "emperor"];
                UserCommand::Create {
                    tenant: if self.rng.one_in(4) { TenantId::default() } else { tenant },
                    id: UserId(self.rng.uuid()),
                    name: self.name("u", 16),
                    role: role.get(self.rng.below(6) as usize).map_or("", |r| r).to_owned(),
                    password_hash: "$argon2id$".to_owned(),
                }
            }
            2 => UserCommand::Password { id: some.1, password_hash: format!("$argon2id${}", self.rng.below(9)) },
            _ => UserCommand::Delete { tenant: some.0, id: some.1 },
        })
    }
}

/// What holds for every state that any log leads to: addresses, keys and names are unique, indexes agree with what they
/// index, ranges do not overlap, members have names and keys of their own. The text names the first thing that does not hold.
pub fn check_invariants(state: &State) -> Result<(), String> {
    let mut keys = BTreeSet::new();
    for (id, tenant) in &state.tenants {
        holds(state.slugs.get(&tenant.record.slug) == Some(id), || format!("slug of tenant {id}"))?;
        let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
        for node in tenant.nodes.values() {
            let of = |what: &str| format!("{what} of node {} in tenant {id}: {node:?}", node.id);
            let cvlan = tenant.cvlans.get(&node.cvlan).ok_or_else(|| of("CVLAN"))?;
            holds(v4.insert(node.ipv4) && cvlan.record.ipv4.contains(&node.ipv4), || of("IPv4 address"))?;
            let good = match (node.ipv6, cvlan.record.ipv6) {
                (None, None) => true,
                (Some(address), Some(net)) => v6.insert(address) && net.contains(&address),
                (Some(_), None) | (None, Some(_)) => false,
            };
            holds(good, || of("IPv6 address"))?;
            holds(
                keys.insert(node.wg_key) && state.node_by_key(&node.wg_key).map(|(_, n)| n.id) == Some(node.id),
                || of("WireGuard key"),
            )?;
            holds(state.node_tenant(node.id) == Some(*id), || of("tenant"))?;
            holds(tenant.node_named(cvlan, &node.name).map(|n| n.id) == Some(node.id), || of("name"))?;
        }
        let named: usize = tenant.cvlans.values().map(|c| c.names.len()).sum();
        holds(named == tenant.nodes.len(), || format!("{named} names of {} nodes in tenant {id}", tenant.nodes.len()))?;
        for token in tenant.tokens.values() {
            holds(token.uses <= token.max_uses, || format!("{} uses of token {}", token.uses, token.id))?;
        }
        let nets: Vec<_> = tenant.cvlans.values().map(|c| c.record.ipv4).collect();
        let apart =
            |(i, a): (usize, &ipnet::Ipv4Net)| nets.iter().skip(i + 1).all(|b| !a.contains(b) && !b.contains(a));
        holds(nets.iter().enumerate().all(apart), || format!("ranges of tenant {id}: {nets:?}"))?;
    }
    check_members(state)?;
    check_presence(state)?;
    state.used_keys.check()?;
    holds(keys.len() == state.wg_keys.len(), || {
        format!("{} WireGuard keys, {} indexed", keys.len(), state.wg_keys.len())
    })?;
    holds(state.node_tenants.len() == keys.len(), || {
        format!("{} nodes, {} indexed", keys.len(), state.node_tenants.len())
    })
}

/// What holds for every log: a caller's key has one effect within its time. The text names the first that had two.
pub fn check_keys(events: &[Event]) -> Result<(), String> {
    let mut used: BTreeMap<(&str, &str), (u64, u64)> = BTreeMap::new();
    for event in events.iter().filter(|e| !e.idempotency_key.is_empty()) {
        let actor = event.actor.as_ref().map(|a| a.id.as_str()).unwrap_or_default();
        let time_ms = Rules::time_ms(event);
        if let Some((seq, then_ms)) = used.insert((actor, &event.idempotency_key), (event.seq, time_ms)) {
            holds(time_ms >= then_ms + KEPT_MS, || {
                format!("key {:?} was used by event {seq} and again by {}", event.idempotency_key, event.seq)
            })?;
        }
    }
    Ok(())
}

fn check_members(state: &State) -> Result<(), String> {
    let members = || state.members.values();
    let names: BTreeSet<_> = members().map(|m| &m.name).collect();
    holds(names.len() == state.members.len() && names.len() <= MEMBERS_MAX, || format!("names of members {names:?}"))?;
    let joined: Vec<_> = members().filter_map(|m| m.joined.as_ref()).map(|j| j.key_sha256).collect();
    holds(BTreeSet::from_iter(&joined).len() == joined.len(), || format!("keys of members {joined:?}"))?;
    let (begun, founder) = (!state.system.ca_certificate.is_empty(), state.members.get(&MemberId::FOUNDER));
    holds(founder.is_some() == (begun && !state.system.founder_gone), || format!("founder {founder:?}"))?;
    holds(!begun || members().any(|m| m.is_in()), || "no member is in".to_owned())?;
    for urls in [state.node_urls(), state.api_urls()] {
        let bytes: usize = urls.iter().map(String::len).sum();
        holds(urls.len() <= URLS_TOTAL_MAX && bytes <= URLS_TOTAL_BYTES, || format!("{urls:?} are advertised"))?;
    }
    Ok(())
}

fn check_presence(state: &State) -> Result<(), String> {
    let mut online = BTreeSet::new();
    for (id, tenant) in &state.tenants {
        for (node, p) in &tenant.presence {
            holds(tenant.nodes.contains_key(node), || format!("presence of no node {node} of tenant {id}: {p:?}"))?;
            online.extend(p.online.then_some((p.member, *node)));
        }
    }
    let indexed: BTreeSet<_> = state.online.iter().copied().collect();
    holds(online == indexed, || format!("online are {online:?}, indexed {indexed:?}"))
}

fn holds(fact: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if fact { Ok(()) } else { Err(what()) }
}
