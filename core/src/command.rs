//! Commands: wishes, complete with every id, nonce and secret's hash, so that deciding one twice gives the same.

use crate::cvlan::CvlanCommand;
use crate::id::{CommandId, NodeId, TokenId, UserId};
use crate::idempotency::Idempotency;
use crate::machine::Once;
use crate::member::MemberCommand;
use crate::node::NodeCommand;
use crate::presence::PresenceCommand;
use crate::system::SystemCommand;
use crate::tenant::TenantCommand;
use crate::token::TokenCommand;
use crate::user::UserCommand;
use cvlan_proto::v1;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Who asks, as proven at the door.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Actor {
    /// The cluster itself.
    #[default]
    System,
    /// A person with a session.
    User(UserId, String),
    /// A machine, by its certificate.
    Node(NodeId, String),
    /// A machine that is not yet one, by its registration token.
    Token(TokenId),
}

impl Actor {
    /// Its id, whatever it is; nil for the cluster itself.
    pub fn uuid(&self) -> Uuid {
        match self {
            Self::System => Uuid::nil(),
            Self::User(id, _) => id.0,
            Self::Node(id, _) => id.0,
            Self::Token(id) => id.0,
        }
    }

    /// As events carry it.
    pub fn to_proto(&self) -> v1::Actor {
        let (kind, id, name) = match self {
            Self::System => ("system", String::new(), String::new()),
            Self::User(id, name) => ("user", id.text(), name.clone()),
            Self::Node(id, name) => ("node", id.text(), name.clone()),
            Self::Token(id) => ("token", id.text(), String::new()),
        };
        v1::Actor { kind: kind.to_owned(), id, name }
    }
}

/// What travels with every command into its events' envelopes.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Meta {
    /// Random, chosen at the door.
    pub id: CommandId,
    /// Who.
    pub actor: Actor,
    /// The door's name for the request.
    pub request_id: String,
    /// Why, in the caller's words.
    pub reason: String,
    /// The caller's address.
    pub source: String,
    /// The door's number for it, so that a repeat is not run twice.
    pub once: Option<Once>,
    /// The caller's own key: the same request again has one effect.
    pub idempotency: Option<Idempotency>,
    /// Only if the thing's last change has this number (`If-Match`).
    pub if_revision: Option<u64>,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// Envelope.
    pub meta: Meta,
    /// The wish itself.
    pub wish: Wish,
}

/// One variant a noun.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Wish {
    /// The cluster.
    System(SystemCommand),
    /// Tenants.
    Tenant(TenantCommand),
    /// CVLANs.
    Cvlan(CvlanCommand),
    /// Nodes.
    Node(NodeCommand),
    /// Registration tokens.
    Token(TokenCommand),
    /// Users.
    User(UserCommand),
    /// Members.
    Member(MemberCommand),
    /// Who is connected.
    Presence(PresenceCommand),
}
