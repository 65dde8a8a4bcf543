//! What the controller does, one file a noun, without a word of HTTP: `fn(&App, caller, input) -> Result<Output, Problem>`.
//!
//! ```text
//!  write ─► command, complete with ids and secrets ─► log (decides) ─► answer from the state after it, never from a view
//!  read by id ─► the state                            list ─► the SQL view, once it is where the reader wants it
//! ```
//! The door has checked the route's permission; `decide` checks again, against the head.

pub mod archive;
pub mod backup;
pub mod cut_off;
pub mod cvlan;
pub mod event;
pub mod fresh;
pub mod list;
pub mod member;
pub mod node;
pub mod proof;
pub mod register;
pub mod replay;
pub mod sink;
pub mod stats;
pub mod system;
pub mod tenant;
pub mod token;
pub mod user;
pub mod views;

use crate::Log;
use crate::auth::{Auth, Session};
use crate::ca::Ca;
use crate::cluster::ask::Voters;
use crate::cluster::keeper::Waiting;
use crate::cluster::notary::Notary;
use crate::cluster::tls::TlsTransport;
use crate::cluster::vault::Vault;
use crate::doors::limit::Limits;
use crate::doors::node::poll::Polls;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::problem::Problem;
use crate::random::{RequestIds, uuid};
use crate::streams::Streams;
use cvlan_core::id::{Checkpoint, CommandId, MemberId, Seq};
use cvlan_core::idempotency::Idempotency;
use cvlan_core::machine::{Context, Machine};
use cvlan_core::name::{TEXT_MAX, text_check};
use cvlan_core::rejection::Kind;
use cvlan_core::{Actor, Command, Meta, Rejection, Rules, State, Wish};
use cvlan_raft::{Answer, Head, WriteError};
use sink::Sink;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Semaphore, watch};
use views::ViewFeed;

/// The controller of one member.
pub struct App {
    /// The log.
    pub log: Log,
    /// DATA/keys.
    pub keys: Keys,
    /// The cluster's keys, where they are here: on members that vote.
    pub vault: Arc<Vault>,
    /// Whom to ask where they are not.
    pub voters: Arc<Voters>,
    /// Signs what the log comes to.
    pub notary: Arc<Notary>,
    /// Who does not vote though it could.
    pub waiting: Arc<Waiting>,
    /// The certificate authority.
    pub ca: Arc<Ca>,
    /// This member.
    pub member: MemberId,
    /// Its node doors.
    pub node_urls: Vec<String>,
    /// Its REST doors.
    pub api_urls: Vec<String>,
    /// The way to the others.
    pub transport: TlsTransport,
    /// Proves people.
    pub auth: Auth,
    /// Who is connected.
    pub streams: Arc<Streams>,
    /// The last applied event: whoever follows the log waits here.
    pub applied: watch::Sender<u64>,
    /// The SQL views.
    pub views: Arc<ViewFeed>,
    /// Rate limits of the doors that need no proof.
    pub limits: Limits,
    /// Turns of those who follow live events.
    pub followers: Arc<Semaphore>,
    /// Where the record is streamed to.
    pub sinks: Vec<Arc<Sink>>,
    /// The newest backup that this member made.
    pub backups: backup::Made,
    /// DATA, with the log.
    pub data: PathBuf,
    /// Turns of those who export.
    pub exports: Arc<Semaphore>,
    /// Turns of those who poll.
    pub polls: Polls,
    /// Turns of those who wait for the newest state.
    pub waiters: Semaphore,
    /// Names the requests that come without a name.
    pub request_ids: RequestIds,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Since when this process is up.
    pub started: Instant,
    /// True once it stops: streams end.
    pub draining: watch::Sender<bool>,
    /// How often machines were sent away because nothing new comes here.
    pub cut_offs: watch::Sender<u64>,
}

/// Who asks for something, and what comes along with the question.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Proven.
    pub session: Session,
    /// The door's name for the request.
    pub request_id: String,
    /// Why, in the caller's words.
    pub reason: String,
    /// Where from.
    pub source: IpAddr,
    /// `If-Match`.
    pub if_revision: Option<u64>,
    /// `Idempotency-Key`, and what it is given for.
    pub idempotency: Option<Idempotency>,
}

impl Caller {
    /// As commands name them.
    pub fn actor(&self) -> Actor {
        Actor::User(self.session.user.id, self.session.user.name.to_string())
    }
}

/// What was done or found, and how fresh it is.
#[derive(Clone, Debug)]
pub struct Output<T> {
    /// The answer.
    pub body: T,
    /// Up to where it has seen everything.
    pub at: Checkpoint,
    /// Event time there, milliseconds since 1970.
    pub time_ms: u64,
    /// The thing's last change: its ETag.
    pub revision: Option<u64>,
    /// Things on all pages of a list.
    pub total: Option<u64>,
}

impl<T> Output<T> {
    /// Read from a head.
    pub fn read(head: &Head<State>, body: T) -> Self {
        Self { body, at: head.checkpoint(), time_ms: head.time_ms, revision: None, total: None }
    }

    /// The same about something made of it.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Output<U> {
        let Self { body, at, time_ms, revision, total } = self;
        Output { body: f(body), at, time_ms, revision, total }
    }

    /// With the thing's ETag.
    pub fn revision(self, revision: u64) -> Self {
        Self { revision: Some(revision), ..self }
    }
}

/// Milliseconds since 1970 (UTC), of this machine's clock.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

impl App {
    /// This member carries out by itself what takes the cluster's keys: it has them, and it votes.
    pub fn decides(&self) -> bool {
        self.vault.need_voting(&self.log).is_ok()
    }

    /// Carries out a person's wish.
    pub async fn write(&self, caller: &Caller, wish: Wish) -> Result<Answer<Rules>, Problem> {
        self.command(Self::meta(caller)?, wish).await
    }

    /// What the rules say to a person's wish, by this member's state: nothing is written.
    pub fn weigh(&self, caller: &Caller, wish: Wish) -> Result<(), Problem> {
        let head = self.log.head();
        let context = Context {
            epoch: head.epoch,
            next_seq: Seq(head.seq.0 + 1),
            time_ms: now_ms().max(head.time_ms),
            level: head.feature_level,
            known_level: Rules::LEVEL,
        };
        let command = Command { meta: Self::meta(caller)?, wish };
        Ok(Rules::decide(&head.machine, &context, &command).map(drop)?)
    }

    fn meta(caller: &Caller) -> Result<Meta, Problem> {
        if text_check("reason", &caller.reason).is_err() {
            let detail = format!("the reason is over {TEXT_MAX} bytes or has control characters");
            return Err(Problem::invalid("text_invalid", detail));
        }
        Ok(Meta {
            actor: caller.actor(),
            request_id: caller.request_id.clone(),
            reason: caller.reason.clone(),
            source: caller.source.to_string(),
            if_revision: caller.if_revision,
            idempotency: caller.idempotency.clone(),
            ..Meta::default()
        })
    }

    /// Carries out a wish, through whoever leads; the command gets its random id here. Afterwards this member's own
    /// state has it.
    pub async fn command(&self, meta: Meta, wish: Wish) -> Result<Answer<Rules>, Problem> {
        let command = Command { meta: Meta { id: CommandId(uuid()), ..meta }, wish };
        let result = self.log.write(command).await;
        self.metrics.write(&result);
        if let Err(WriteError::Rejected(Rejection { kind: Kind::Repeated(seq), .. })) = &result {
            // The door gives that answer again, from this member's own state.
            self.applied_here(Checkpoint { epoch: self.log.head().epoch, seq: *seq }).await?;
        }
        let answer = result?;
        self.applied_here(answer.checkpoint).await?;
        Ok(answer)
    }

    /// The answer to a write, with the thing as it is after it.
    pub fn written<T>(&self, answer: &Answer<Rules>, body: T) -> Output<T> {
        let time_ms = answer.events.last().map_or_else(|| self.log.head().time_ms, Rules::time_ms);
        Output { body, at: answer.checkpoint, time_ms, revision: None, total: None }
    }
}
