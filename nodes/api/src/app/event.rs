//! Events as people may see them: only what they may audit, and never a secret.

use super::list::Params;
use super::{App, Caller, Output};
use crate::auth::Session;
use crate::problem::Problem;
use cvlan_core::Rules;
use cvlan_core::access::{Permission, allowed};
use cvlan_core::id::{Checkpoint, MemberId, Seq};
use cvlan_core::machine::Machine;
use cvlan_core::presence::transitions;
use cvlan_core::redact::redact;
use cvlan_core::rules::tenant_of;
use cvlan_core::user::User;
use cvlan_projections::AuditQuery;
use cvlan_proto::v1::{self, Event};
use cvlan_raft::HistoryError;
use uuid::Uuid;

/// Events looked at for one page: one who may see few of them does not make the controller read the whole log.
pub const SCAN_MAX: usize = 10_000;
/// Asks for everything, presence included.
pub const ALL: &str = "all";
const PRESENCE: &str = "presence";
/// Events read at once.
const BATCH: usize = 512;

/// What of the log is asked for.
#[derive(Clone, Debug)]
pub struct EventQuery {
    /// First event.
    pub from: Seq,
    /// Last event.
    pub to: Seq,
    /// Events on the page.
    pub limit: usize,
    /// Only events about this noun; empty = all but presence, which would drown them; [`ALL`] = all.
    pub noun: String,
    /// Only events about this thing.
    pub id: Option<Uuid>,
    /// The reader's own checkpoint.
    pub at_least: Option<Checkpoint>,
}

/// A page, oldest first.
#[derive(Debug, Default)]
pub struct EventPage {
    /// Redacted.
    pub items: Vec<Event>,
    /// Where to go on; 0 = at the end.
    pub next: u64,
    /// The first event that a filtered page knows of; 1 = all.
    pub complete_from: u64,
}

impl EventQuery {
    /// From a request's parameters.
    pub fn read(params: &Params, at_least: Option<Checkpoint>) -> Result<Self, Problem> {
        const NOUNS: [&str; 9] = ["system", "tenant", "cvlan", "node", "token", "user", "member", PRESENCE, ALL];
        let noun = params.get("noun").unwrap_or_default().to_owned();
        if !noun.is_empty() && !NOUNS.contains(&noun.as_str()) {
            return Err(Problem::invalid("query_invalid", format!("noun is one of {}", NOUNS.join(", "))));
        }
        let id = params.get("id").map(|id| {
            let number = || id.parse().map(MemberId::uuid);
            let wrong = |_| Problem::invalid("query_invalid", format!("id = {id:?} is no UUID and no member's number"));
            Uuid::parse_str(id).or_else(|_| number()).map_err(wrong)
        });
        Ok(Self {
            from: Seq(params.number("from", 1)?.max(1)),
            to: Seq(params.number("to", u64::MAX)?),
            limit: params.limit()?,
            noun,
            id: id.transpose()?,
            at_least,
        })
    }

    /// By the audit view; it has no presence, which is looked for in the log itself.
    fn filtered(&self) -> bool {
        self.id.is_some() || !["", PRESENCE, ALL].contains(&self.noun.as_str())
    }

    fn wants(&self, event: &Event) -> bool {
        let presence = transitions(event).is_some();
        match self.noun.as_str() {
            PRESENCE => presence,
            ALL => true,
            _ => !presence,
        }
    }
}

/// May this user audit this event? It has the permission in its own home; a tenant's user sees its tenant alone.
pub fn visible(user: &User, event: &Event) -> bool {
    user.tenant.is_nil() || tenant_of(event) == user.tenant
}

/// May this session's user audit still?
pub fn audits(app: &App, session: &Session) -> bool {
    may(app, session, Permission::AuditRead)
}

/// May this session's user do that still, in its own home?
pub fn may(app: &App, session: &Session, permission: Permission) -> bool {
    let head = app.log.head();
    let user = head.machine.users.get(&session.user.id);
    app.auth.still_good(&head.machine, session) && user.is_some_and(|u| allowed(u.role, u.tenant, permission, u.tenant))
}

/// A page of what the caller may audit.
pub async fn page(app: &App, caller: &Caller, query: &EventQuery) -> Result<Output<EventPage>, Problem> {
    let head = app.log.head();
    let mut page = match query.filtered() {
        true => filtered(app, caller, query).await?,
        false => scanned(app, &caller.session.user, query, head.seq).await?,
    };
    for event in &mut page.items {
        redact(event);
    }
    Ok(Output::read(&head, page))
}

/// Reads the log from `query.from` on.
pub async fn scanned(app: &App, user: &User, query: &EventQuery, head: Seq) -> Result<EventPage, Problem> {
    let end = query.to.min(head);
    let mut page = EventPage { complete_from: 1, ..EventPage::default() };
    let (mut at, mut looked) = (query.from.0, 0);
    while at <= end.0 && page.items.len() < query.limit && looked < SCAN_MAX {
        let read = app.log.history(Seq(at), BATCH.min((end.0 - at + 1) as usize)).await?;
        if read.is_empty() {
            break;
        }
        for (seq, bytes) in read {
            if seq > end || page.items.len() == query.limit {
                break;
            }
            at = seq.0 + 1;
            looked += 1;
            let event = Rules::decode(&bytes).map_err(Problem::internal)?;
            if visible(user, &event) && query.wants(&event) {
                page.items.push(event);
            }
        }
    }
    page.next = if at <= end.0 { at } else { 0 };
    Ok(page)
}

/// Asks the audit view which events they are, and reads those.
async fn filtered(app: &App, caller: &Caller, query: &EventQuery) -> Result<EventPage, Problem> {
    if let Some(at_least) = query.at_least {
        app.views.reach(at_least).await?;
    }
    let user = &caller.session.user;
    let kept = Seq(app.log.status().history_from);
    let asked = AuditQuery {
        tenant: (!user.tenant.is_nil()).then_some(user.tenant),
        noun: query.noun.clone(),
        id: query.id,
        actor: None,
        from: query.from.max(kept),
        oldest_first: true,
        limit: query.limit,
    };
    let found = app.views.read(move |v| v.audit(&asked)).await?;
    let mut page = EventPage { complete_from: found.complete_from.max(kept).0, ..EventPage::default() };
    for seq in found.seqs {
        if seq > query.to {
            return Ok(page);
        }
        let read = match app.log.history(seq, 1).await {
            // Trimmed meanwhile.
            Err(HistoryError::Gone { first }) => {
                page.complete_from = page.complete_from.max(first.0);
                continue;
            }
            read => read?,
        };
        for (_, bytes) in read {
            let event = Rules::decode(&bytes).map_err(Problem::internal)?;
            // The view chose it; the door's own rule has the last word.
            if visible(user, &event) {
                page.items.push(event);
            }
        }
    }
    page.next = found.next.filter(|n| *n <= query.to).map_or(0, |n| n.0);
    Ok(page)
}

impl EventPage {
    /// As one JSON document.
    pub fn to_proto(self) -> v1::EventList {
        v1::EventList { items: self.items, next_seq: self.next }
    }
}
