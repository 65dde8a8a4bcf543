//! The cluster itself: its bootstrap, where its members' doors are, its checkpoints.

use crate::access::{Permission, permit};
use crate::command::Meta;
use crate::id::{Epoch, MemberId, Seq, TenantId, UserId};
use crate::machine::{Context, SystemFact};
use crate::member::{self, Member};
use crate::rejection::Rejection;
use crate::rules::{Fact, Key};
use crate::state::State;
use crate::user;
use cvlan_proto::v1::{self, JwtKey, Sealed, event::Body, system_event::Kind};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// URLs of a kind that one member may advertise.
pub const URLS_MAX: usize = 16;
/// Level of features that came with trimmed history.
pub const HISTORY_LEVEL: u32 = 2;
/// Checkpoints the state remembers.
pub const CHECKPOINTS_MAX: usize = 64;

/// What belongs to the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SystemState {
    /// DER of the embedded CA's certificate; empty before the bootstrap.
    pub ca_certificate: Vec<u8>,
    /// X25519 key that machines prove their WireGuard key against.
    pub challenge_public_key: [u8; 32],
    /// Its private half.
    pub challenge_key: Sealed,
    /// HMAC keys of people's sessions, newest last.
    pub jwt_keys: Vec<JwtKey>,
    /// The founder was removed.
    pub founder_gone: bool,
    /// The last [`CHECKPOINTS_MAX`] completed checkpoints, oldest first.
    pub checkpoints: Vec<v1::CheckpointRecord>,
    /// Events before this one need not be kept; 0: all of them.
    pub history_from: Seq,
}

/// Wishes about the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SystemCommand {
    /// The first of a log.
    Bootstrap(Box<Bootstrap>),
    /// Where a member's doors are; it asks for it itself at its start.
    Advertise {
        /// Which.
        member: MemberId,
        /// Node doors.
        node_urls: Vec<String>,
        /// REST doors.
        api_urls: Vec<String>,
    },
    /// From the log itself.
    Fact(SystemFact),
}

/// Everything that a new log starts with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// The log's incarnation.
    pub epoch: Epoch,
    /// DER.
    pub ca_certificate: Vec<u8>,
    /// X25519.
    pub challenge_public_key: [u8; 32],
    /// Sealed private half.
    #[serde(with = "crate::wire")]
    pub challenge_key: Sealed,
    /// The first HMAC key.
    #[serde(with = "crate::wire")]
    pub jwt_key: JwtKey,
    /// The first superadmin.
    pub admin_id: UserId,
    /// Its login name.
    pub admin_name: String,
    /// PHC string, argon2id.
    pub admin_password_hash: String,
}

pub(crate) fn decide(
    state: &State,
    context: &Context,
    meta: &Meta,
    command: &SystemCommand,
) -> Result<Vec<Fact>, Rejection> {
    permit(state, &meta.actor, Permission::ClusterWrite, TenantId::default())?;
    let kind = match command {
        SystemCommand::Bootstrap(b) => {
            if !state.system.ca_certificate.is_empty() {
                return Err(Rejection::conflict("already_bootstrapped", "this log has its first entry already"));
            }
            let bootstrapped = Kind::Bootstrapped(Box::new(v1::Bootstrapped {
                epoch: b.epoch.to_string(),
                ca_certificate: b.ca_certificate.clone(),
                challenge_public_key: b.challenge_public_key.to_vec(),
                challenge_key: Some(b.challenge_key.clone()),
                jwt_key: Some(b.jwt_key.clone()),
                feature_level: if context.known_level > 1 { context.known_level } else { 0 },
            }));
            let admin = user::created_superadmin(b.admin_id, &b.admin_name, &b.admin_password_hash);
            return Ok(vec![fact(bootstrapped), admin]);
        }
        SystemCommand::Advertise { member, node_urls, api_urls } => {
            match member::advertise(state, *member, node_urls, api_urls)? {
                Some(changed) => Kind::AdvertisementChanged(changed),
                None => return Ok(Vec::new()),
            }
        }
        SystemCommand::Fact(SystemFact::CheckpointOpened) => Kind::CheckpointOpened(v1::CheckpointOpened {}),
        SystemCommand::Fact(SystemFact::Checkpointed { seq, root, digest }) => {
            Kind::Checkpointed(v1::Checkpointed { seq: seq.0, root: root.to_vec(), digest: digest.to_vec() })
        }
        SystemCommand::Fact(SystemFact::EpochBegun { previous, member }) => Kind::EpochBegun(v1::EpochBegun {
            previous_epoch: previous.to_string(),
            member_id: *member,
            removed: state.members.keys().map(|id| id.0).filter(|id| id != member).collect(),
        }),
        SystemCommand::Fact(SystemFact::HistoryTrimmed { first }) => {
            if context.level < HISTORY_LEVEL {
                let why = "a member does not know of trimmed history yet: all must have been upgraded";
                return Err(Rejection::conflict("feature_level", why));
            }
            if *first > context.next_seq {
                return Err(Rejection::conflict("history_ahead", "events that are not there cannot be trimmed"));
            }
            if first.0 <= state.system.history_from.0.max(1) {
                return Ok(Vec::new());
            }
            Kind::HistoryTrimmed(v1::HistoryTrimmed { first_seq: first.0 })
        }
        SystemCommand::Fact(SystemFact::LevelRaised { level }) => match *level > context.level {
            true => Kind::FeatureLevelRaised(v1::FeatureLevelRaised { level: *level }),
            false => return Ok(Vec::new()),
        },
    };
    Ok(vec![fact(kind)])
}

fn fact(kind: Kind) -> Fact {
    Fact { tenant: TenantId::default(), body: Body::System(v1::SystemEvent { kind: Some(kind) }) }
}

pub(crate) fn apply(state: &mut State, event: &v1::SystemEvent) {
    let system = Arc::make_mut(&mut state.system);
    match &event.kind {
        Some(Kind::Bootstrapped(b)) => {
            state.members.insert(MemberId::FOUNDER, Arc::new(Member::founder()));
            system.ca_certificate = b.ca_certificate.clone();
            system.challenge_public_key = b.challenge_public_key.as_slice().try_into().unwrap_or_default();
            system.challenge_key = b.challenge_key.clone().unwrap_or_default();
            system.jwt_keys.extend(b.jwt_key.clone());
        }
        Some(Kind::CheckpointOpened(_) | Kind::FeatureLevelRaised(_)) | None => {}
        Some(Kind::HistoryTrimmed(e)) => system.history_from = system.history_from.max(Seq(e.first_seq)),
        Some(Kind::Checkpointed(c)) => {
            if system.checkpoints.len() == CHECKPOINTS_MAX {
                system.checkpoints.remove(0);
            }
            let record = v1::CheckpointRecord {
                seq: c.seq,
                root: hex::encode(&c.root),
                digest: hex::encode(&c.digest),
                note: String::new(),
            };
            system.checkpoints.push(record);
        }
        Some(Kind::AdvertisementChanged(a)) => member::apply_advertised(state, a),
        Some(Kind::EpochBegun(e)) => e.removed.iter().for_each(|id| member::apply_removed(state, MemberId(*id))),
    }
}

pub(crate) fn touched(event: &v1::SystemEvent) -> Vec<Key> {
    match &event.kind {
        Some(Kind::Bootstrapped(_)) => vec![Key::Member(MemberId::FOUNDER)],
        Some(Kind::AdvertisementChanged(a)) => vec![Key::Member(member::advertiser(a))],
        Some(Kind::EpochBegun(e)) => e.removed.iter().map(|id| Key::Member(MemberId(*id))).collect(),
        Some(
            Kind::CheckpointOpened(_) | Kind::Checkpointed(_) | Kind::HistoryTrimmed(_) | Kind::FeatureLevelRaised(_),
        )
        | None => Vec::new(),
    }
}

/// Reads a fact of the log's own back.
pub(crate) fn fact_of(event: &v1::SystemEvent) -> Option<SystemFact> {
    match &event.kind {
        Some(Kind::CheckpointOpened(_)) => Some(SystemFact::CheckpointOpened),
        Some(Kind::Checkpointed(c)) => Some(SystemFact::Checkpointed {
            seq: Seq(c.seq),
            root: c.root.as_slice().try_into().ok()?,
            digest: c.digest.as_slice().try_into().ok()?,
        }),
        Some(Kind::EpochBegun(e)) => {
            Some(SystemFact::EpochBegun { previous: e.previous_epoch.parse().ok()?, member: e.member_id })
        }
        Some(Kind::HistoryTrimmed(e)) => Some(SystemFact::HistoryTrimmed { first: Seq(e.first_seq) }),
        Some(Kind::FeatureLevelRaised(e)) => Some(SystemFact::LevelRaised { level: e.level }),
        Some(Kind::Bootstrapped(_) | Kind::AdvertisementChanged(_)) | None => None,
    }
}

/// The level of features from this event on, where it says so.
pub(crate) fn level_of(event: &v1::SystemEvent) -> Option<u32> {
    match &event.kind {
        Some(Kind::Bootstrapped(e)) => Some(e.feature_level.max(1)),
        Some(Kind::FeatureLevelRaised(e)) => Some(e.level),
        _ => None,
    }
}
