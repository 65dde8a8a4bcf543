//! Random histories for the tests: commands of every kind, decided and applied by core.

use crate::audit::{AuditPage, AuditQuery};
use crate::db::Views;
use crate::error::Error;
use crate::list::{Ask, Page, Query, Sql};
use crate::meta;
use crate::postgres::testing::Database;
use crate::writer::Target;
use cvlan_core::command::{Actor, Meta};
use cvlan_core::cvlan::CvlanCommand;
use cvlan_core::id::{Checkpoint, CommandId, CvlanId, Epoch, KeyId, MemberId, NodeId, Seq, TenantId, TokenId, UserId};
use cvlan_core::machine::{Context, Machine, SystemFact};
use cvlan_core::member::MemberCommand;
use cvlan_core::node::{Device, Machine as Reported, NodeCommand, Register};
use cvlan_core::presence::{PresenceCommand, Transition, transitions};
use cvlan_core::system::SystemCommand;
use cvlan_core::tenant::{SigningKey, TenantCommand};
use cvlan_core::token::TokenCommand;
use cvlan_core::user::UserCommand;
use cvlan_core::{Command, Rules, State, Wish};
use cvlan_proto::v1::{self, Event, Sealed};
use std::path::Path;
use uuid::Uuid;

/// A log in memory.
pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) events: Vec<Event>,
    pub(crate) epoch: Epoch,
    pub(crate) now_ms: u64,
    seed: u64,
}

impl World {
    /// `steps` random commands, some of which are refused.
    pub(crate) fn new(seed: u64, steps: usize) -> Self {
        let epoch = Epoch((u128::from(seed) + 1).to_be_bytes());
        let mut world = Self { state: State::default(), events: Vec::new(), epoch, now_ms: 1_700_000_000_000, seed };
        for slug in ["acme", "beta"] {
            world.tenant_create(slug);
        }
        (0..steps).for_each(|_| world.step());
        world
    }

    pub(crate) fn checkpoint(&self) -> Checkpoint {
        Checkpoint { epoch: self.epoch, seq: Seq(self.events.len() as u64) }
    }

    /// Events that the audit has.
    pub(crate) fn audited(&self) -> usize {
        self.events.iter().filter(|event| transitions(event).is_none()).count()
    }

    /// The state after event `seq`.
    pub(crate) fn at(&self, seq: usize) -> (State, Checkpoint) {
        let mut state = State::default();
        self.events[..seq].iter().for_each(|event| Rules::apply(&mut state, event));
        (state, Checkpoint { epoch: self.epoch, seq: Seq(seq as u64) })
    }

    pub(crate) fn run(&mut self, wish: Wish) -> bool {
        self.now_ms += self.below(5_000);
        let actor = match &wish {
            Wish::Node(NodeCommand::Register(r)) => Actor::Token(r.token),
            _ => Actor::System,
        };
        let meta = Meta { id: CommandId(self.uuid()), actor, ..Meta::default() };
        let next_seq = Seq(self.events.len() as u64 + 1);
        let context = Context { epoch: self.epoch, next_seq, time_ms: self.now_ms, level: 1, known_level: 1 };
        let Ok(events) = Rules::decide(&self.state, &context, &Command { meta, wish }) else { return false };
        events.iter().for_each(|event| Rules::apply(&mut self.state, event));
        self.events.extend(events);
        true
    }

    pub(crate) fn tenant_create(&mut self, slug: &str) -> bool {
        let (id, key) = (TenantId(self.uuid()), KeyId(self.uuid()));
        let key = SigningKey { id: key, public_key: [7; 32], seed: Some(Sealed::default()) };
        self.run(Wish::Tenant(TenantCommand::Create { id, slug: slug.into(), name: format!("The {slug}"), key }))
    }

    /// splitmix64 (Steele, Lea, Flood 2014).
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.seed ^ (self.seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn uuid(&mut self) -> Uuid {
        Uuid::from_u64_pair(self.below(u64::MAX), self.below(u64::MAX))
    }

    fn pick<T: Copy>(&mut self, of: Vec<T>) -> Option<T> {
        (!of.is_empty()).then(|| of[self.below(of.len() as u64) as usize])
    }

    fn step(&mut self) {
        let Some(tenant) = self.pick(self.state.tenants.keys().copied().collect()) else {
            self.tenant_create("first");
            return;
        };
        let home = self.state.tenants[&tenant].clone();
        let cvlan = self.pick(home.cvlans.keys().copied().collect()).unwrap_or_default();
        let node = self.pick(home.nodes.keys().copied().collect()).unwrap_or_default();
        let token = self.pick(home.tokens.keys().copied().collect()).unwrap_or_default();
        let user = self.pick(self.state.users.values().map(|u| (u.tenant, u.id)).collect()).unwrap_or_default();
        let name = format!("n{}", self.below(40));
        let wish = match self.below(20) {
            0 => {
                let slug = format!("t{}", self.below(5));
                self.tenant_create(&slug);
                return;
            }
            1 => Wish::Tenant(TenantCommand::Update { id: tenant, name: Some(name) }),
            // An empty tenant does not always go at once, else nothing would ever grow.
            2 if self.below(8) > 0 => return,
            2 => Wish::Tenant(TenantCommand::Delete { id: tenant }),
            3 | 4 => self.cvlan_create(tenant, name),
            5 => Wish::Cvlan(CvlanCommand::Update { tenant, id: cvlan, name: Some(name) }),
            6 => Wish::Cvlan(CvlanCommand::Delete { tenant, id: cvlan }),
            7..=9 => self.node_create(tenant, cvlan, name),
            10 => Wish::Node(NodeCommand::Update { tenant, id: node, name: Some(name), status: None }),
            11 => {
                let status = ["active", "disabled"][self.below(2) as usize].to_owned();
                Wish::Node(NodeCommand::Update { tenant, id: node, name: None, status: Some(status) })
            }
            12 => {
                let endpoints = vec![format!("192.0.2.{}:51820", self.below(200) + 1)];
                Wish::Node(NodeCommand::Endpoints { tenant, id: node, endpoints })
            }
            13 if self.below(3) > 0 => self.node_create(tenant, cvlan, name),
            13 => Wish::Node(NodeCommand::Delete { tenant, id: node }),
            14 => self.token_create(tenant, cvlan, name),
            15 => return self.node_register(tenant, token),
            16 => Wish::Token(TokenCommand::Delete { tenant, id: token }),
            17 => {
                let home = [tenant, TenantId::default()][self.below(2) as usize];
                let role = if home.is_nil() { "superadmin" } else { "member" }.to_owned();
                let (id, password_hash) = (UserId(self.uuid()), "$argon2id$v=19$secret".to_owned());
                Wish::User(UserCommand::Create { tenant: home, id, name, role, password_hash })
            }
            18 => Wish::User(UserCommand::Delete { tenant: user.0, id: user.1 }),
            _ => self.member(tenant, node),
        };
        self.run(wish);
    }

    /// A token whose CVLAN is gone: nothing keeps its tenant from being deleted.
    pub(crate) fn token_left_behind(&mut self, tenant: TenantId) {
        let wish = self.cvlan_create(tenant, "gone".to_owned());
        assert!(self.run(wish));
        let cvlan = *self.state.tenants[&tenant].cvlans.keys().next().unwrap();
        let wish = self.token_create(tenant, cvlan, "left".to_owned());
        assert!(self.run(wish));
        assert!(self.run(Wish::Cvlan(CvlanCommand::Delete { tenant, id: cvlan })));
    }

    fn token_create(&mut self, tenant: TenantId, cvlan: CvlanId, note: String) -> Wish {
        let (id, life_ms) = (TokenId(self.uuid()), 60_000 + self.below(600_000));
        let (key, max_uses) = (self.state.tenants[&tenant].record.signing_keys[0].id, 1 + self.below(3) as u32);
        let tags = vec!["lab".to_owned()];
        Wish::Token(TokenCommand::Create { tenant, cvlan, id, key, tags, max_uses, life_ms, note })
    }

    fn cvlan_create(&mut self, tenant: TenantId, name: String) -> Wish {
        let ipv6 = ["", "auto"][self.below(2) as usize].to_owned();
        let id = CvlanId(self.uuid());
        let [_, _, _, global_id @ ..] = self.below(u64::MAX).to_be_bytes();
        Wish::Cvlan(CvlanCommand::Create { tenant, id, name, ipv4: String::new(), ipv6, global_id })
    }

    fn node_create(&mut self, tenant: TenantId, cvlan: CvlanId, name: String) -> Wish {
        let (id, tags, endpoints) = (NodeId(self.uuid()), vec!["b".to_owned(), "a".to_owned()], Vec::new());
        let wg_key = [id.0.into_bytes(), id.0.into_bytes()].concat().try_into().unwrap();
        Wish::Node(NodeCommand::Create { tenant, devices: vec![Device { cvlan, id, name, wg_key, tags, endpoints }] })
    }

    /// One is admitted and comes; else a machine connects, or the log's own.
    fn member(&self, tenant: TenantId, node: NodeId) -> Wish {
        let (n, secret_hash) = (self.events.len(), [3; 32]);
        match self.state.members.values().find(|m| !m.is_in()).map(|m| m.id) {
            Some(id) => {
                let (address, version) = ("192.0.2.1:8445".to_owned(), "0.1.0".to_owned());
                let key_sha256 = [n.to_be_bytes(); 4].concat().try_into().unwrap();
                Wish::Member(MemberCommand::Join { id, secret_hash, key_sha256, address, version })
            }
            None if n % 3 == 0 => {
                Wish::Member(MemberCommand::Admit { name: format!("m{n}"), secret_hash, life_ms: 3_600_000 })
            }
            None if n % 3 == 1 && !node.is_nil() => {
                let transitions = vec![Transition { node, session: n as u64, online: true }];
                Wish::Presence(PresenceCommand::Report { tenant, member: MemberId::FOUNDER, transitions })
            }
            None => Wish::System(SystemCommand::Fact(SystemFact::CheckpointOpened)),
        }
    }

    fn node_register(&mut self, tenant: TenantId, token: TokenId) {
        let Some(key) = self.state.tenants[&tenant].tokens.get(&token).map(|t| t.key) else { return };
        let id = NodeId(self.uuid());
        let wg_key = [id.0.into_bytes(), id.0.into_bytes()].concat().try_into().unwrap();
        let machine =
            Reported { hostname: format!("Host-{}", self.below(9)), os: "linux".into(), ..Reported::default() };
        let nonce = self.uuid().into_bytes();
        let (csr_key_hash, device_binding) = ([1; 32], [2; 32]);
        let register = Register { id, tenant, token, key, wg_key, csr_key_hash, nonce, device_binding, machine };
        self.run(Wish::Node(NodeCommand::Register(Box::new(register))));
    }
}

/// What tests ask of a view, whichever database it is in.
pub(crate) trait Lists {
    fn tenants(&self, only: Option<TenantId>, query: &Query) -> Result<Page<v1::Tenant>, Error>;
    fn cvlans(&self, tenant: TenantId, query: &Query) -> Result<Page<v1::Cvlan>, Error>;
    fn nodes(&self, tenant: TenantId, query: &Query) -> Result<Page<v1::Node>, Error>;
    fn tokens(&self, tenant: TenantId, query: &Query) -> Result<Page<v1::Token>, Error>;
    fn users(&self, tenant: TenantId, query: &Query) -> Result<Page<v1::User>, Error>;
    fn audit(&self, query: &AuditQuery) -> Result<AuditPage, Error>;
    fn fold(&self, state: &State, events: &[&Event]) -> Result<Checkpoint, Error>;
}

impl Lists for Views {
    fn tenants(&self, only: Option<TenantId>, query: &Query) -> Result<Page<v1::Tenant>, Error> {
        Views::tenants(self, only, query)
    }

    fn cvlans(&self, tenant: TenantId, query: &Query) -> Result<Page<v1::Cvlan>, Error> {
        Views::cvlans(self, tenant, query)
    }

    fn nodes(&self, tenant: TenantId, query: &Query) -> Result<Page<v1::Node>, Error> {
        Views::nodes(self, tenant, query)
    }

    fn tokens(&self, tenant: TenantId, query: &Query) -> Result<Page<v1::Token>, Error> {
        Views::tokens(self, tenant, query)
    }

    fn users(&self, tenant: TenantId, query: &Query) -> Result<Page<v1::User>, Error> {
        Views::users(self, tenant, query)
    }

    fn audit(&self, query: &AuditQuery) -> Result<AuditPage, Error> {
        Views::audit(self, query)
    }

    fn fold(&self, state: &State, events: &[&Event]) -> Result<Checkpoint, Error> {
        Views::fold(self, state, events)
    }
}

/// A whole view of the world in each kind of database there is here.
pub(crate) fn both(world: &World, folder: &Path) -> Vec<Box<dyn Lists>> {
    let views = Views::open(folder.join("views.db")).unwrap();
    views.rebuild(&world.state, world.checkpoint()).unwrap();
    views.audit_backfill(&world.events).unwrap();
    let mut all: Vec<Box<dyn Lists>> = vec![Box::new(views)];
    if let Some(database) = Database::new() {
        let mut target = database.target();
        target.rebuild(&world.state, world.checkpoint()).unwrap();
        target.backfill(&world.events).unwrap();
        all.push(Box::new(database.view(target)));
    }
    all
}

/// Every statement on rows and `meta` that is the same for all databases.
pub(crate) fn statements() -> Vec<String> {
    let mut all = [meta::READ, meta::SCHEMA, meta::CREATE, meta::MOVE].map(str::to_owned).to_vec();
    for table in meta::TABLES {
        let sql = table.sql();
        all.extend([sql.upsert.clone(), sql.delete.clone(), sql.sweep.clone()]);
    }
    all
}

/// Every row of every table, as text, in the order of the keys: the same in all databases.
pub(crate) fn rows(db: &impl Ask) -> Vec<String> {
    let mut all = Vec::new();
    for table in meta::TABLES {
        let sql = format!("SELECT {} FROM {} ORDER BY {}", table.all(), table.name, table.key());
        db.ask(&Sql { text: sql, args: Vec::new() }, &mut |row| {
            let cells: Vec<_> = table.columns.iter().map(|_| format!("{:?}", row.value().unwrap())).collect();
            all.push(format!("{}: {}", table.name, cells.join(" | ")));
            Ok(true)
        })
        .unwrap();
    }
    let (checkpoint, audit_from) = meta::read(db).unwrap();
    all.push(format!("meta: {checkpoint} | {audit_from}"));
    all
}

/// The same for a file.
pub(crate) fn dump(path: &Path) -> Vec<String> {
    rows(&rusqlite::Connection::open(path).unwrap())
}

/// All pages of a list, at most `limit` rows each.
pub(crate) fn all<T>(limit: usize, query: &Query, list: impl Fn(&Query) -> Page<T>) -> Vec<T> {
    let (mut query, mut items) = (Query { limit, ..query.clone() }, Vec::new());
    loop {
        let page = list(&query);
        assert!(page.items.len() <= limit);
        items.extend(page.items);
        assert!(items.len() as u64 <= page.total, "a row comes twice");
        if page.next_cursor.is_empty() {
            assert_eq!(items.len() as u64, page.total);
            return items;
        }
        query.cursor = page.next_cursor;
    }
}

/// The views say what the state says, message by message.
pub(crate) fn agree(views: &Views, state: &State, now_ms: u64) {
    agrees(views, state, now_ms);
}

/// The same, whichever database they are in.
pub(crate) fn agrees(views: &dyn Lists, state: &State, now_ms: u64) {
    let query = Query { now_ms, ..Query::default() };
    fn sorted<T: std::fmt::Debug>(items: impl IntoIterator<Item = T>) -> Vec<String> {
        let mut all: Vec<_> = items.into_iter().map(|item| format!("{item:?}")).collect();
        all.sort();
        all
    }
    let tenants = all(7, &query, |q| views.tenants(None, q).unwrap());
    assert_eq!(sorted(tenants), sorted(state.tenants.values().map(|t| t.to_proto())));
    for (id, home) in &state.tenants {
        let only = all(7, &query, |q| views.tenants(Some(*id), q).unwrap());
        assert_eq!(sorted(only), sorted([home.to_proto()]));
        let cvlans = all(7, &query, |q| views.cvlans(*id, q).unwrap());
        assert_eq!(sorted(cvlans), sorted(home.cvlans.values().map(|c| c.to_proto())));
        let nodes = all(7, &query, |q| views.nodes(*id, q).unwrap());
        assert_eq!(sorted(nodes), sorted(home.nodes.values().map(|n| n.to_proto())));
        let tokens = all(7, &query, |q| views.tokens(*id, q).unwrap());
        assert_eq!(sorted(tokens), sorted(home.tokens.values().map(|t| t.to_proto(now_ms))));
    }
    for home in state.tenants.keys().copied().chain([TenantId::default()]) {
        let users = all(7, &query, |q| views.users(home, q).unwrap());
        assert_eq!(sorted(users), sorted(state.users.values().filter(|u| u.tenant == home).map(|u| u.to_proto())));
    }
}
