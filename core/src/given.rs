//! Given / when / then for the nouns' tests: a small world, one command, what comes of it.

use crate::command::{Actor, Command, Meta, Wish};
use crate::cvlan::CvlanCommand;
use crate::grammar::Grammar;
use crate::id::{CvlanId, Epoch, KeyId, NodeId, Seq, TenantId, TokenId, UserId};
use crate::machine::{Context, Machine as _};
use crate::node::{Device, Machine, NodeCommand, Register};
use crate::tenant::{SigningKey, TenantCommand};
use crate::token::TokenCommand;
use crate::user::UserCommand;
use crate::{Rejection, Rules, State};
use cvlan_proto::v1::{Event, Sealed};
use uuid::Uuid;

pub(crate) fn tenant(n: u128) -> TenantId {
    TenantId(Uuid::from_u128(0x1000 + n))
}

pub(crate) fn cvlan(n: u128) -> CvlanId {
    CvlanId(Uuid::from_u128(0x2000 + n))
}

pub(crate) fn node(n: u128) -> NodeId {
    NodeId(Uuid::from_u128(0x3000 + n))
}

pub(crate) fn token(n: u128) -> TokenId {
    TokenId(Uuid::from_u128(0x4000 + n))
}

pub(crate) fn key(n: u128) -> KeyId {
    KeyId(Uuid::from_u128(0x5000 + n))
}

pub(crate) fn user(n: u128) -> UserId {
    UserId(Uuid::from_u128(0x6000 + n))
}

pub(crate) fn seed(n: u128) -> [u8; 32] {
    [n as u8 + 1; 32]
}

/// Tenants 1 and 2, each with CVLAN of its number (10.0.0.0/24), token of its number for two machines, and its key.
pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) seq: u64,
    pub(crate) now_ms: u64,
}

pub(crate) fn given() -> World {
    let mut world = World { state: State::default(), seq: 0, now_ms: 1_700_000_000_000 };
    world.ok(Grammar::new(1).bootstrap().wish);
    for n in 1..=2 {
        let public_key = ed25519_dalek::SigningKey::from_bytes(&seed(n)).verifying_key().to_bytes();
        let key = SigningKey { id: key(n), public_key, seed: Some(Sealed::default()) };
        let slug = format!("tenant{n}");
        world.ok(Wish::Tenant(TenantCommand::Create { id: tenant(n), slug, name: String::new(), key }));
        world.ok(cvlan_create(n, n, "net", "10.0.0.0/24", "fd00::/64"));
        world.ok(token_create(n, n, 2, 3_600_000));
    }
    world
}

impl World {
    pub(crate) fn when(&mut self, actor: Actor, wish: Wish) -> Result<Vec<Event>, Rejection> {
        self.when_meta(Meta { actor, ..Meta::default() }, wish)
    }

    pub(crate) fn when_meta(&mut self, meta: Meta, wish: Wish) -> Result<Vec<Event>, Rejection> {
        let ctx = Context {
            epoch: Epoch([1; 16]),
            next_seq: Seq(self.seq + 1),
            time_ms: self.now_ms,
            level: 1,
            known_level: 1,
        };
        let events = Rules::decide(&self.state, &ctx, &Command { meta, wish })?;
        self.seq += events.len() as u64;
        events.iter().for_each(|e| Rules::apply(&mut self.state, e));
        Ok(events)
    }

    pub(crate) fn ok(&mut self, wish: Wish) -> Vec<Event> {
        self.when(Actor::System, wish).unwrap()
    }

    /// The code of the refusal.
    pub(crate) fn code(&mut self, wish: Wish) -> &'static str {
        self.when(Actor::System, wish).unwrap_err().code
    }

    pub(crate) fn register(&mut self, r: Register) -> Result<usize, &'static str> {
        let actor = Actor::Token(r.token);
        self.when(actor, Wish::Node(NodeCommand::Register(Box::new(r)))).map(|e| e.len()).map_err(|r| r.code)
    }
}

pub(crate) fn cvlan_create(t: u128, n: u128, name: &str, ipv4: &str, ipv6: &str) -> Wish {
    let (name, ipv4, ipv6) = (name.to_owned(), ipv4.to_owned(), ipv6.to_owned());
    Wish::Cvlan(CvlanCommand::Create { tenant: tenant(t), id: cvlan(n), name, ipv4, ipv6, global_id: [n as u8; 5] })
}

pub(crate) fn token_create(t: u128, n: u128, max_uses: u32, life_ms: u64) -> Wish {
    Wish::Token(TokenCommand::Create {
        tenant: tenant(t),
        cvlan: cvlan(t),
        id: token(n),
        key: key(t),
        tags: vec!["b".into(), "a".into()],
        max_uses,
        life_ms,
        note: String::new(),
    })
}

pub(crate) fn node_create(t: u128, c: u128, n: u128, name: &str) -> Wish {
    Wish::Node(NodeCommand::Create { tenant: tenant(t), devices: vec![device(c, n, name)] })
}

/// Device `n`, for CVLAN `c`.
pub(crate) fn device(c: u128, n: u128, name: &str) -> Device {
    let mut wg_key = [n as u8; 32];
    wg_key[1] = (n >> 8) as u8;
    let (tags, endpoints) = (Vec::new(), Vec::new());
    Device { cvlan: cvlan(c), id: node(n), name: name.to_owned(), wg_key, tags, endpoints }
}

pub(crate) fn user_create(t: Option<u128>, n: u128, name: &str, role: &str) -> Wish {
    Wish::User(UserCommand::Create {
        tenant: t.map(tenant).unwrap_or_default(),
        id: user(n),
        name: name.to_owned(),
        role: role.to_owned(),
        password_hash: "$argon2id$".to_owned(),
    })
}

/// Machine `n` with tenant 1's token.
pub(crate) fn machine(n: u128) -> Register {
    Register {
        id: node(n),
        tenant: tenant(1),
        token: token(1),
        key: key(1),
        wg_key: [n as u8; 32],
        csr_key_hash: [n as u8; 32],
        nonce: [n as u8; 16],
        device_binding: [n as u8; 32],
        machine: Machine { hostname: "web".into(), ..Machine::default() },
    }
}
