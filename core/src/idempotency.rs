//! `Idempotency-Key`: what callers' keys were used for, so that a request that is sent again has one effect.
//!
//! ```text
//! (actor, key) ─► never used, or [`KEPT_MS`] ago: decide │ for the same request: its event │ for another one: refused
//! ```
//! Part of the state: folded from the envelopes of commands' first events, equal on every replica. What was refused or
//! changed nothing left no event, and is not remembered. A key in use is never forgotten early: whoever has too many
//! of them is refused. Keys end by the log's time: each event removes at most [`SWEEP`] that have ended.

use crate::command::Actor;
use crate::id::{Seq, TenantId};
use crate::rejection::{Kind, Rejection};
use crate::rules::{Stamp, tenant_of};
use crate::state::State;
use cvlan_proto::v1::Event;
use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use uuid::Uuid;

/// The longest key, bytes.
pub const KEY_MAX: usize = 255;
/// A key is kept so long, milliseconds of event time.
pub const KEPT_MS: u64 = 24 * 3_600_000;
/// Keys in use, of one tenant's writes (or the cluster's own), and in all.
pub const USED_MAX: Used = Used { tenant: 10_000, all: 1_000_000 };
/// Ended keys that one event removes, besides one of its own tenant.
const SWEEP: usize = 4;

/// How many keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Of one tenant.
    pub tenant: usize,
    /// Of all.
    pub all: usize,
}

/// What a caller gives with a write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// Chosen by the caller; another actor's equal key is another key.
    pub key: String,
    /// Hash of what makes it the same request, under a key of the cluster's: a body may hold a password, and whoever
    /// reads the log must not guess against it.
    pub body_hash: [u8; 32],
}

/// A key that was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedKey {
    /// Whose: id of the user, node or token; nil = the cluster itself.
    pub actor: Uuid,
    /// As the caller gave it.
    pub key: Arc<str>,
    /// What it was used for.
    pub body_hash: [u8; 32],
    /// Whose write it was; nil = the cluster's.
    pub tenant: TenantId,
    /// Event time.
    pub time_ms: u64,
}

impl UsedKey {
    fn is_over(&self, now_ms: u64) -> bool {
        now_ms >= self.time_ms.saturating_add(KEPT_MS)
    }
}

/// All of them, by the first event that they were used for: oldest first in time too.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UsedKeys {
    by_seq: OrdMap<Seq, Arc<UsedKey>>,
    by_key: OrdMap<(Uuid, Arc<str>), Seq>,
    by_tenant: OrdMap<TenantId, OrdSet<Seq>>,
}

impl UsedKeys {
    /// Each with its event, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (Seq, &UsedKey)> {
        self.by_seq.iter().map(|(seq, used)| (*seq, &**used))
    }

    /// Kept now, ended ones that no event has removed yet among them.
    pub fn len(&self) -> usize {
        self.by_seq.len()
    }

    /// True where no key is kept.
    pub fn is_empty(&self) -> bool {
        self.by_seq.is_empty()
    }

    /// The first event of the request that this key was used for, if it was the same; refused where it was another.
    pub fn seen(&self, actor: &Actor, given: &Idempotency, now_ms: u64) -> Result<Option<Seq>, Rejection> {
        let Some(seq) = self.by_key.get(&(actor.uuid(), Arc::from(given.key.as_str()))) else { return Ok(None) };
        let used = self.by_seq.get(seq).filter(|used| !used.is_over(now_ms));
        match used {
            None => Ok(None),
            Some(used) if used.body_hash == given.body_hash => Ok(Some(*seq)),
            Some(_) => Err(Rejection {
                kind: Kind::Unprocessable,
                code: "idempotency_key_reused",
                detail: format!("this Idempotency-Key was used for another request (event {seq}); choose a new one"),
            }),
        }
    }

    /// Refused where one more key of this tenant is too many.
    fn room(&self, tenant: TenantId, now_ms: u64, most: Used) -> Result<(), Rejection> {
        // The oldest makes room if it has ended.
        let over = |seq: Option<&Seq>| seq.and_then(|s| self.by_seq.get(s)).is_some_and(|used| used.is_over(now_ms));
        let own = self.by_tenant.get(&tenant);
        let full = |what: String| {
            let detail = format!(
                "{what} Idempotency-Keys are in use, each for 24 h; nothing was done, send it without one, or later"
            );
            Err(Rejection { kind: Kind::Full, code: "idempotency_keys_full", detail })
        };
        let own_full = own.is_some_and(|own| own.len() >= most.tenant);
        if own_full && !over(own.and_then(OrdSet::get_min)) {
            return full(format!("{} of this tenant's", most.tenant));
        }
        if !own_full && self.len() >= most.all && !over(self.by_seq.get_min().map(|(seq, _)| seq)) {
            return full(most.all.to_string());
        }
        Ok(())
    }

    fn sweep(&mut self, now_ms: u64) {
        for _ in 0..SWEEP {
            match self.by_seq.get_min().filter(|(_, used)| used.is_over(now_ms)).map(|(seq, _)| *seq) {
                Some(seq) => self.remove(seq),
                None => return,
            }
        }
    }

    fn note(&mut self, seq: Seq, used: UsedKey) {
        let oldest = self.by_tenant.get(&used.tenant).and_then(|own| own.get_min().copied());
        if let Some(oldest) = oldest
            && self.by_seq.get(&oldest).is_some_and(|other| other.is_over(used.time_ms))
        {
            self.remove(oldest);
        }
        self.insert(seq, used);
    }

    /// Puts a key and what is derived from it into the state.
    pub(crate) fn insert(&mut self, seq: Seq, used: UsedKey) {
        if let Some(ended) = self.by_key.insert((used.actor, used.key.clone()), seq) {
            self.remove_seq(ended);
        }
        self.by_tenant.entry(used.tenant).or_default().insert(seq);
        self.by_seq.insert(seq, Arc::new(used));
    }

    fn remove(&mut self, seq: Seq) {
        if let Some(used) = self.remove_seq(seq) {
            self.by_key.remove(&(used.actor, used.key.clone()));
        }
    }

    fn remove_seq(&mut self, seq: Seq) -> Option<Arc<UsedKey>> {
        let used = self.by_seq.remove(&seq)?;
        if let Some(own) = self.by_tenant.get_mut(&used.tenant) {
            own.remove(&seq);
            if own.is_empty() {
                self.by_tenant.remove(&used.tenant);
            }
        }
        Some(used)
    }

    /// What holds always; the text names the first thing that does not.
    pub(crate) fn check(&self) -> Result<(), String> {
        let of_tenants: usize = self.by_tenant.values().map(OrdSet::len).sum();
        if self.by_key.len() != self.len() || of_tenants != self.len() || self.len() > USED_MAX.all {
            return Err(format!("{} used keys, {} by key, {of_tenants} by tenant", self.len(), self.by_key.len()));
        }
        if let Some((tenant, own)) = self.by_tenant.iter().find(|(_, own)| own.len() > USED_MAX.tenant) {
            return Err(format!("{} used keys of tenant {tenant}", own.len()));
        }
        let mut before = 0;
        for (seq, used) in self.iter() {
            let indexed = self.by_key.get(&(used.actor, used.key.clone())) == Some(&seq)
                && self.by_tenant.get(&used.tenant).is_some_and(|own| own.contains(&seq));
            if !indexed || used.time_ms < before {
                return Err(format!("the used key of event {seq}: {used:?}"));
            }
            before = used.time_ms;
        }
        Ok(())
    }
}

/// A key as callers may choose it: 1 to [`KEY_MAX`] visible ASCII characters.
pub fn key_check(key: &str) -> Result<(), Rejection> {
    if (1..=KEY_MAX).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(());
    }
    let detail = format!("an Idempotency-Key is 1 to {KEY_MAX} visible ASCII characters, as a random UUID is");
    Err(Rejection::invalid("idempotency_key_invalid", detail))
}

/// Before a command is decided: refuses one that was carried out, naming its event, and a key that is none.
pub(crate) fn before(state: &State, actor: &Actor, given: &Idempotency, now_ms: u64) -> Result<(), Rejection> {
    key_check(&given.key)?;
    match state.used_keys.seen(actor, given, now_ms)? {
        None => Ok(()),
        Some(seq) => Err(Rejection {
            kind: Kind::Repeated(seq),
            code: "idempotency_repeated",
            detail: format!("this request was carried out as event {seq}"),
        }),
    }
}

/// After it: is there room for its key?
pub(crate) fn room(state: &State, tenant: TenantId, now_ms: u64) -> Result<(), Rejection> {
    state.used_keys.room(tenant, now_ms, USED_MAX)
}

/// What the envelope says.
pub(crate) fn apply(state: &mut State, stamp: Stamp, event: &Event) {
    let used = &mut state.used_keys;
    used.sweep(stamp.time_ms);
    if event.idempotency_key.is_empty() {
        return;
    }
    let actor = event.actor.as_ref().and_then(|a| Uuid::parse_str(&a.id).ok()).unwrap_or_default();
    let key = UsedKey {
        actor,
        key: event.idempotency_key.as_str().into(),
        body_hash: event.body_hash.as_slice().try_into().unwrap_or_default(),
        tenant: tenant_of(event),
        time_ms: stamp.time_ms,
    };
    used.note(stamp.seq, key);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Meta, Wish};
    use crate::given::{World, cvlan_create, given, user, user_create};
    use crate::tenant::TenantCommand;

    fn meta(actor: &Actor, key: &str, body: u8) -> Meta {
        let idempotency = Some(Idempotency { key: key.to_owned(), body_hash: [body; 32] });
        Meta { actor: actor.clone(), idempotency, ..Meta::default() }
    }

    /// Admins 1 and 2 of the tenants of their numbers.
    fn world() -> (World, [Actor; 2]) {
        let mut w = given();
        for n in 1..=2 {
            w.ok(user_create(Some(n), n, "admin", "tenantadmin"));
        }
        (w, [1, 2].map(|n| Actor::User(user(n), "admin".into())))
    }

    fn create(t: u128, n: u128) -> Wish {
        cvlan_create(t, n, &format!("net{n}"), "", "")
    }

    #[test]
    fn the_same_request_again_has_one_effect() {
        let (mut w, [one, two]) = world();
        let first = w.when_meta(meta(&one, "k", 1), create(1, 11)).unwrap();
        assert_eq!((first[0].idempotency_key.as_str(), first[0].body_hash.as_slice()), ("k", [1; 32].as_slice()));
        let seq = Seq(first[0].seq);
        // A door draws other ids for the same request.
        let again = w.when_meta(meta(&one, "k", 1), create(1, 12)).unwrap_err();
        assert_eq!((again.kind, again.code), (Kind::Repeated(seq), "idempotency_repeated"));
        let other = w.when_meta(meta(&one, "k", 2), create(1, 12)).unwrap_err();
        assert_eq!((other.kind, other.code), (Kind::Unprocessable, "idempotency_key_reused"));
        // Another key, and another actor's same key.
        assert_eq!(w.when_meta(meta(&one, "k2", 1), create(1, 12)).unwrap().len(), 1);
        assert_eq!(w.when_meta(meta(&two, "k", 1), create(2, 21)).unwrap().len(), 1);
        assert_eq!(w.when_meta(meta(&Actor::System, "k", 1), create(2, 22)).unwrap().len(), 1);
    }

    #[test]
    fn what_left_no_event_may_be_sent_again() {
        let (mut w, [one, _]) = world();
        assert_eq!(w.when_meta(meta(&one, "k", 1), create(2, 11)).unwrap_err().code, "tenant_not_found");
        let name = |name: &str| {
            let id = crate::given::tenant(1);
            Wish::Tenant(TenantCommand::Update { id, name: Some(name.to_owned()) })
        };
        w.ok(name("a"));
        assert_eq!(w.when_meta(meta(&Actor::System, "k", 1), name("a")).unwrap().len(), 0);
        assert_eq!(w.when_meta(meta(&one, "k", 2), create(1, 11)).unwrap().len(), 1);
        assert_eq!(w.when_meta(meta(&Actor::System, "k", 2), name("b")).unwrap().len(), 1);
        assert_eq!(w.state.used_keys.len(), 2);
    }

    #[test]
    fn a_command_of_two_events_has_its_key_on_the_first() {
        let mut w = World { state: State::default(), seq: 0, now_ms: 1 };
        let boot = crate::grammar::Grammar::new(1).bootstrap().wish;
        let events = w.when_meta(meta(&Actor::System, "k", 1), boot).unwrap();
        assert_eq!(events.iter().map(|e| e.idempotency_key.as_str()).collect::<Vec<_>>(), ["k", ""]);
        assert_eq!(events[1].body_hash, Vec::<u8>::new());
        assert_eq!(w.state.used_keys.iter().map(|(seq, _)| seq.0).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_key_ends_by_the_logs_time() {
        let (mut w, [one, _]) = world();
        w.when_meta(meta(&one, "k", 1), create(1, 11)).unwrap();
        let used_ms = w.now_ms;
        w.now_ms = used_ms + KEPT_MS - 1;
        assert_eq!(w.when_meta(meta(&one, "k", 1), create(1, 12)).unwrap_err().code, "idempotency_repeated");
        // Also while no event has removed it.
        w.now_ms = used_ms + KEPT_MS;
        assert_eq!(w.state.used_keys.len(), 1);
        assert_eq!(w.when_meta(meta(&one, "k", 2), create(1, 12)).unwrap().len(), 1);
        assert_eq!(w.state.used_keys.len(), 1);
        for n in 0..2 * SWEEP {
            w.when_meta(meta(&one, &format!("k{n}"), 1), create(1, 100 + n as u128)).unwrap();
        }
        w.now_ms += KEPT_MS;
        let before = w.state.used_keys.len();
        w.ok(create(2, 21));
        assert_eq!(w.state.used_keys.len(), before - SWEEP, "bounded work, also where much has ended");
        w.state.used_keys.check().unwrap();
    }

    #[test]
    fn keys_that_are_none() {
        let (mut w, [one, _]) = world();
        for bad in ["", "a b", "ä", "a\u{7f}", &"k".repeat(KEY_MAX + 1)] {
            assert_eq!(w.when_meta(meta(&one, bad, 1), create(1, 11)).unwrap_err().code, "idempotency_key_invalid");
        }
        assert!(w.when_meta(meta(&one, &"~".repeat(KEY_MAX), 1), create(1, 11)).is_ok());
    }

    #[test]
    fn one_tenant_has_ten_thousand() {
        let (mut w, [one, two]) = world();
        let id = crate::given::tenant(1);
        let rename = |n: usize| Wish::Tenant(TenantCommand::Update { id, name: Some(format!("t{n}")) });
        for n in 0..USED_MAX.tenant {
            w.when_meta(meta(&Actor::System, &n.to_string(), 1), rename(n)).unwrap();
        }
        let full = w.when_meta(meta(&one, "k", 1), create(1, 11)).unwrap_err();
        assert_eq!((full.kind, full.code), (Kind::Full, "idempotency_keys_full"));
        assert_eq!(w.when_meta(meta(&Actor::System, "7", 1), rename(1)).unwrap_err().code, "idempotency_repeated");
        // Without a key, or in another tenant, it goes on; and once the oldest has ended.
        assert!(w.when(one.clone(), create(1, 11)).is_ok());
        assert!(w.when_meta(meta(&two, "k", 1), create(2, 21)).is_ok());
        w.now_ms += KEPT_MS;
        assert!(w.when_meta(meta(&one, "k", 1), create(1, 12)).is_ok());
        w.state.used_keys.check().unwrap();
    }

    #[test]
    fn all_tenants_together_have_a_bound_too() {
        let tenant = |n: u128| TenantId(Uuid::from_u128(n));
        let most = Used { tenant: 2, all: 3 };
        let mut used = UsedKeys::default();
        for (seq, (t, time_ms)) in [(1, 10), (2, 20), (2, 30)].into_iter().enumerate() {
            assert_eq!(used.room(tenant(t), time_ms, most), Ok(()));
            let key: Arc<str> = format!("k{seq}").as_str().into();
            let (actor, body_hash, tenant) = (Uuid::nil(), [0; 32], tenant(t));
            used.insert(Seq(seq as u64 + 1), UsedKey { actor, key, body_hash, tenant, time_ms });
        }
        let code = |t: u128, now_ms: u64| used.room(tenant(t), now_ms, most).map_err(|r| r.code);
        assert_eq!(code(1, 30), Err("idempotency_keys_full"));
        assert_eq!(code(2, 10 + KEPT_MS), Err("idempotency_keys_full"), "its own oldest has not ended");
        assert_eq!((code(1, 10 + KEPT_MS), code(2, 20 + KEPT_MS), code(3, 10 + KEPT_MS)), (Ok(()), Ok(()), Ok(())));
    }
}
