//! What the member that decides takes from another one. A command names its actor, and the door that proved the actor is the
//! other member's: so each may send what its doors can have proven, and no more.
//!
//! ```text
//!  any member    of itself: where its doors are, where it is, who is connected to it; its machines' own endpoints
//!  one that votes  also: a person's wish, a registration, a join, a rebuild, where a member is that came from elsewhere
//!  nobody        the first of a log, the log's own facts, the end of another member's sessions: who decides makes them
//! ```
//! A voter is believed: it has the keys that sessions are signed with, so it could prove any. A follower has none, proves no
//! person and no token, and what it sends has no trace of a person. That a machine is connected to it, and says
//! where it is, nobody else can see: there it is believed too.

use crate::command::{Actor, Command, Meta, Wish};
use crate::cvlan::CvlanCommand;
use crate::machine::Sender;
use crate::member::MemberCommand;
use crate::name::{NAME_MAX, text_check};
use crate::node::NodeCommand;
use crate::presence::PresenceCommand;
use crate::system::SystemCommand;
use crate::tenant::TenantCommand;
use crate::token::TokenCommand;
use crate::user::UserCommand;

/// Whose word it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// Nobody's.
    Nobody,
    /// A member's own, about itself: this one.
    Own(u64),
    /// A voter's, for the cluster.
    Voter,
    /// A voter's, for another member; a member's own about itself.
    OwnOrVoter(u64),
    /// A voter's, for a person.
    Person,
    /// A voter's, for a person, or for whoever has its folder.
    PersonOrFolder,
    /// A voter's, for a machine with a token.
    Token,
    /// Any member's, for a machine.
    Machine,
}

/// May it? An error names the command.
pub(crate) fn from_member(command: &Command, from: Sender) -> Result<(), &'static str> {
    let (word, name) = word(&command.wish);
    let meta = &command.meta;
    let system = meta.actor == Actor::System;
    let may = match word {
        Word::Nobody => false,
        Word::Own(member) => system && member == from.member,
        Word::Voter => system && from.votes,
        Word::OwnOrVoter(member) => system && (from.votes || member == from.member),
        Word::Person => from.votes && matches!(meta.actor, Actor::User(..)),
        Word::PersonOrFolder => from.votes && (system || matches!(meta.actor, Actor::User(..))),
        Word::Token => from.votes && matches!(meta.actor, Actor::Token(_)),
        Word::Machine => matches!(meta.actor, Actor::Node(..)),
    };
    if may && (from.votes || plain(meta)) { Ok(()) } else { Err(name) }
}

/// Nothing in it that only people bring, and nothing long.
fn plain(meta: &Meta) -> bool {
    let Meta { id: _, actor, request_id, reason, source, once: _, idempotency, if_revision } = meta;
    let name = match actor {
        Actor::Node(_, name) => name,
        Actor::System | Actor::User(..) | Actor::Token(_) => "",
    };
    let bare = request_id.is_empty() && reason.is_empty() && idempotency.is_none() && if_revision.is_none();
    bare && name.len() <= NAME_MAX && text_check("source", source).is_ok()
}

fn word(wish: &Wish) -> (Word, &'static str) {
    match wish {
        Wish::System(c) => match c {
            SystemCommand::Bootstrap(_) => (Word::Nobody, "system.bootstrap"),
            SystemCommand::Advertise { member, .. } => (Word::Own(member.0), "system.advertise"),
            SystemCommand::Fact(_) => (Word::Nobody, "system.fact"),
        },
        Wish::Tenant(c) => match c {
            TenantCommand::Create { .. } => (Word::Person, "tenant.create"),
            TenantCommand::Update { .. } => (Word::Person, "tenant.update"),
            TenantCommand::Delete { .. } => (Word::Person, "tenant.delete"),
        },
        Wish::Cvlan(c) => match c {
            CvlanCommand::Create { .. } => (Word::Person, "cvlan.create"),
            CvlanCommand::Update { .. } => (Word::Person, "cvlan.update"),
            CvlanCommand::Delete { .. } => (Word::Person, "cvlan.delete"),
        },
        Wish::Node(c) => match c {
            NodeCommand::Create { .. } => (Word::Person, "node.create"),
            NodeCommand::Register(_) => (Word::Token, "node.register"),
            NodeCommand::Update { .. } => (Word::Person, "node.update"),
            NodeCommand::Endpoints { .. } => (Word::Machine, "node.endpoints"),
            NodeCommand::Delete { .. } => (Word::Person, "node.delete"),
        },
        Wish::Token(c) => match c {
            TokenCommand::Create { .. } => (Word::Person, "token.create"),
            TokenCommand::Delete { .. } => (Word::Person, "token.delete"),
        },
        Wish::User(c) => match c {
            UserCommand::Create { .. } => (Word::Person, "user.create"),
            // `cvlan-api admin reset-password` has nobody to name.
            UserCommand::Password { .. } => (Word::PersonOrFolder, "user.password"),
            UserCommand::Delete { .. } => (Word::Person, "user.delete"),
        },
        Wish::Member(c) => match c {
            MemberCommand::Admit { .. } => (Word::Person, "member.admit"),
            MemberCommand::Join { .. } => (Word::Voter, "member.join"),
            MemberCommand::Announce { id, .. } => (Word::OwnOrVoter(id.0), "member.announce"),
            MemberCommand::Remove { .. } => (Word::Person, "member.remove"),
            MemberCommand::Rebuild { .. } => (Word::Voter, "member.rebuild"),
        },
        Wish::Presence(c) => match c {
            PresenceCommand::Report { member, .. } => (Word::Own(member.0), "presence.report"),
            PresenceCommand::Expire { .. } => (Word::Nobody, "presence.expire"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::given::{cvlan_create, machine, node, node_create, tenant, token, token_create, user, user_create};
    use crate::grammar::Grammar;
    use crate::id::MemberId;
    use crate::idempotency::Idempotency;
    use crate::machine::{Machine as _, SystemFact};
    use crate::rules::Rules;

    const OWN: u64 = 7;

    fn of(member: u64) -> [Wish; 3] {
        let member = MemberId(member);
        let (address, version) = (String::new(), String::new());
        [
            Wish::System(SystemCommand::Advertise { member, node_urls: vec![], api_urls: vec![] }),
            Wish::Member(MemberCommand::Announce { id: member, key_sha256: [1; 32], address, version, note_key: None }),
            Wish::Presence(PresenceCommand::Report { tenant: tenant(1), member, transitions: vec![] }),
        ]
    }

    fn joins() -> [Wish; 2] {
        let (id, address, version) = (MemberId(OWN), String::new(), String::new());
        let (secret_hash, key_sha256) = ([1; 32], [2; 32]);
        let join = MemberCommand::Join { id, secret_hash, key_sha256, address, version };
        let (address, version) = (String::new(), String::new());
        let rebuild = MemberCommand::Rebuild { id, key_sha256, secret_hash, address, version };
        [Wish::Member(join), Wish::Member(rebuild)]
    }

    fn endpoints() -> Wish {
        Wish::Node(NodeCommand::Endpoints { tenant: tenant(1), id: node(1), endpoints: vec![] })
    }

    /// One of every other kind.
    fn people() -> Vec<Wish> {
        let (tenant, id) = (tenant(1), node(1));
        vec![
            Wish::Tenant(TenantCommand::Update { id: tenant, name: None }),
            Wish::Tenant(TenantCommand::Delete { id: tenant }),
            cvlan_create(1, 1, "net", "", ""),
            Wish::Cvlan(CvlanCommand::Delete { tenant, id: crate::given::cvlan(1) }),
            node_create(1, 1, 1, "box"),
            Wish::Node(NodeCommand::Update { tenant, id, name: None, status: None }),
            Wish::Node(NodeCommand::Delete { tenant, id }),
            token_create(1, 1, 1, 60_000),
            Wish::Token(TokenCommand::Delete { tenant, id: token(1) }),
            user_create(None, 1, "ann", "superadmin"),
            Wish::User(UserCommand::Delete { tenant, id: user(1) }),
            Wish::Member(MemberCommand::Admit { name: "m".into(), secret_hash: [1; 32], life_ms: 60_000 }),
            Wish::Member(MemberCommand::Remove { id: MemberId(1) }),
        ]
    }

    #[test]
    fn who_may_send_what() {
        let fact = SystemFact::Checkpointed { seq: crate::id::Seq(3), root: [0; 32], digest: [0; 32] };
        let facts = [SystemFact::CheckpointOpened, fact].map(|fact| Rules::system(fact, [1; 16]).wish);
        let register = || Wish::Node(NodeCommand::Register(Box::new(machine(1))));
        let (system, person) = (Actor::System, Actor::User(user(1), "ann".into()));
        let (machine, token) = (Actor::Node(node(1), "box".into()), Actor::Token(token(1)));
        let expire = |id| Wish::Presence(PresenceCommand::Expire { member: MemberId(id) });
        let [advertise, announce, report] = of(OWN + 1);
        // wishes; the one actor that they may come from, at a follower, and at a voter
        type Row<'a> = (Vec<Wish>, Option<&'a Actor>, Option<&'a Actor>);
        let table: [Row<'_>; 9] = [
            (of(OWN).into(), Some(&system), Some(&system)),
            (vec![endpoints()], Some(&machine), Some(&machine)),
            (vec![announce], None, Some(&system)),
            (joins().into(), None, Some(&system)),
            (vec![register()], None, Some(&token)),
            (people(), None, Some(&person)),
            (vec![advertise, report, expire(OWN), expire(OWN + 1)], None, None),
            (facts.into(), None, None),
            (vec![Grammar::new(1).bootstrap().wish], None, None),
        ];
        for (wishes, follower, voter) in table {
            for wish in wishes {
                for actor in [&system, &person, &machine, &token] {
                    for (votes, may) in [(false, follower), (true, voter)] {
                        let meta = Meta { actor: actor.clone(), ..Meta::default() };
                        let command = Command { meta, wish: wish.clone() };
                        let got = from_member(&command, Sender { member: OWN, votes });
                        assert_eq!(got.is_ok(), may == Some(actor), "{command:?} {votes} {got:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_password_is_a_persons_or_the_folders_to_change_through_a_voter() {
        let wish = || Wish::User(UserCommand::Password { id: user(1), password_hash: String::new() });
        for (actor, voter) in [
            (Actor::System, true),
            (Actor::User(user(1), "ann".into()), true),
            (Actor::Node(node(1), "box".into()), false),
            (Actor::Token(token(1)), false),
        ] {
            for votes in [false, true] {
                let command = Command { meta: Meta { actor: actor.clone(), ..Meta::default() }, wish: wish() };
                let may = from_member(&command, Sender { member: OWN, votes }).is_ok();
                assert_eq!(may, votes && voter, "{actor:?} {votes}");
            }
        }
    }

    #[test]
    fn what_a_follower_sends_bears_nothing_of_a_person() {
        let actor = Actor::Node(node(1), "box".into());
        let good = Meta { actor: actor.clone(), source: "192.0.2.1".into(), ..Meta::default() };
        let key = Idempotency { key: "k".into(), body_hash: [1; 32] };
        let long = |n| "x".repeat(n);
        for (what, meta, may) in [
            ("good", good.clone(), true),
            ("request", Meta { request_id: "r".into(), ..good.clone() }, false),
            ("reason", Meta { reason: "r".into(), ..good.clone() }, false),
            ("key", Meta { idempotency: Some(key), ..good.clone() }, false),
            ("revision", Meta { if_revision: Some(1), ..good.clone() }, false),
            ("source", Meta { source: long(300), ..good.clone() }, false),
            ("name", Meta { actor: Actor::Node(node(1), long(64)), ..good.clone() }, false),
        ] {
            let command = Command { meta, wish: endpoints() };
            let send = |votes| from_member(&command, Sender { member: OWN, votes });
            assert_eq!(send(false).is_ok(), may, "{what}");
            assert_eq!(send(true), Ok(()), "{what}: a voter is believed");
        }
    }
}
