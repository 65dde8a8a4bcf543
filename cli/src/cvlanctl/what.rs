//! Events in people's words: "node web-1 joined office as 10.0.0.2".
//!
//! Events name things by id. A name is learned from the events that gave it, in their order, so that a sentence says what
//! a thing was called then; what was named before the first event shown is looked up in the thing's own history.

use crate::client::Client;
use crate::failure::Failure;
use crate::print::{number, text, time};
use serde_json::{Value, json};
use std::collections::HashMap;

/// Kinds of things that events are about.
const NOUNS: [&str; 7] = ["system", "tenant", "cvlan", "node", "token", "user", "member"];
/// Names looked up for one command; beyond, ids are shown.
const LOOKUPS_MAX: usize = 500;
/// Events of one thing that are read to learn its name.
const LOOKUP_EVENTS: usize = 1000;

/// What things are called.
#[derive(Debug, Default)]
pub struct Known {
    names: HashMap<String, String>,
    lookups: usize,
}

/// Noun, verb and fields of an event.
fn body(event: &Value) -> Option<(&str, &str, &Value)> {
    NOUNS.iter().find_map(|noun| {
        let (verb, fields) = event.get(noun)?.as_object()?.iter().next()?;
        Some((*noun, verb.as_str(), fields))
    })
}

/// The id of the thing that an event is about.
pub fn subject(event: &Value) -> String {
    body(event).map(|(noun, _, fields)| text(fields, &format!("{noun}Id"))).unwrap_or_default()
}

/// The name that an event gives to its thing.
pub fn named(event: &Value) -> Option<String> {
    let (noun, verb, fields) = body(event)?;
    let name = match (noun, verb) {
        // A tenant's name is for people; what it is called by is its slug.
        ("tenant", "created") => text(fields, "slug"),
        ("tenant", _) => return None,
        _ => text(fields, "name"),
    };
    Some(name).filter(|n| !n.is_empty())
}

impl Known {
    fn learn(&mut self, event: &Value) {
        if let Some(name) = named(event) {
            self.names.insert(subject(event), name);
        }
    }

    fn name(&self, id: &str) -> String {
        self.names.get(id).cloned().unwrap_or_else(|| id.to_owned())
    }

    /// An event as a line: seq, time, tenant, actor, what, reason and more.
    pub async fn line(&mut self, client: &mut Client, event: &Value) -> Result<Value, Failure> {
        for (noun, id) in mentioned(event) {
            if !id.is_empty() && !self.names.contains_key(&id) && self.lookups < LOOKUPS_MAX {
                self.look_up(client, noun, &id, number(event, "seq")).await?;
            }
        }
        let what = self.what(event);
        self.learn(event);
        let actor = event.get("actor").cloned().unwrap_or_default();
        Ok(json!({
            "seq": text(event, "seq"),
            "time": time(event, "time"),
            "tenant": self.name(&text(event, "tenantId")),
            "actor": who(&actor),
            "what": what,
            "reason": text(event, "reason"),
            "source": text(event, "source"),
            "request": text(event, "requestId"),
        }))
    }

    async fn look_up(&mut self, client: &mut Client, noun: &str, id: &str, before: u64) -> Result<(), Failure> {
        self.lookups += 1;
        let path = format!("/log/events?noun={noun}&id={id}&to={before}&limit={LOOKUP_EVENTS}");
        let page = client.get(&path).await?;
        for event in page.get("items").and_then(Value::as_array).into_iter().flatten() {
            if number(event, "seq") < before {
                self.learn(event);
            }
        }
        // Known to be unknown: not asked again.
        self.names.entry(id.to_owned()).or_insert_with(|| id.to_owned());
        Ok(())
    }

    /// The sentence.
    fn what(&self, event: &Value) -> String {
        let Some((noun, verb, fields)) = body(event) else {
            return "something this version has no word for".to_owned();
        };
        let f = |name: &str| text(fields, name);
        let it = self.name(&subject(event));
        let (cvlan, name) = (self.name(&f("cvlanId")), f("name"));
        match (noun, verb) {
            ("system", "bootstrapped") => format!("the log began, epoch {}", f("epoch")),
            ("system", "checkpointOpened") => "checkpoint opened".to_owned(),
            ("system", "checkpointed") => format!("checkpoint at event {} completed", f("seq")),
            ("system", "advertisementChanged") => {
                let whom = match f("memberId").as_str() {
                    "" => "the controllers".to_owned(),
                    id => format!("member {}", self.name(id)),
                };
                format!("machines find {whom} at {}", or(f("nodeUrls").replace(',', ", "), "no URL"))
            }
            ("tenant", "created") => format!("tenant {} created", f("slug")),
            ("tenant", "updated") => format!("tenant {it} is called {name:?} now"),
            ("cvlan", "created") => format!("CVLAN {name} created with {}", both(&f("ipv4Cidr"), &f("ipv6Cidr"))),
            ("node", "created") => {
                let came =
                    if fields.get("enrolment").is_some_and(Value::is_object) { "joined" } else { "was added to" };
                format!("node {name} {came} {cvlan} as {}", both(&f("ipv4"), &f("ipv6")))
            }
            ("node", "updated") if !f("status").is_empty() && name.is_empty() => match f("status").as_str() {
                "active" => format!("node {it} enabled"),
                status => format!("node {it} {status}"),
            },
            ("node", "deleted") => format!("node {it} deleted from {cvlan}"),
            ("node", "endpointsChanged") => {
                format!("node {it} is reached at {}", or(f("endpoints").replace(',', ", "), "no address"))
            }
            ("token", "created") => {
                let (uses, until) = (number(fields, "maxUses"), time(fields, "expiresAt"));
                let plural = if uses == 1 { "machine" } else { "machines" };
                format!("token {} created: {uses} {plural} into {cvlan} until {until}", short(&f("tokenId")))
            }
            ("token", "deleted") => format!("token {} deleted", short(&f("tokenId"))),
            ("user", "created") => format!("user {name} created as {}", f("role")),
            ("user", "passwordChanged") => format!("user {it} has a new password"),
            ("member", "admitted") => {
                format!("member {name} ({}) may join until {}", f("memberId"), time(fields, "expiresAt"))
            }
            ("member", "joined") => format!("member {it} is in at {} with version {}", f("address"), f("version")),
            (_, "updated") if !name.is_empty() => format!("{} {it} renamed to {name}", shown(noun)),
            (_, verb) => format!("{} {it} {}", shown(noun), words(verb)),
        }
    }
}

/// Nouns and ids that the line of an event names.
fn mentioned(event: &Value) -> Vec<(&'static str, String)> {
    let mut all = vec![("tenant", text(event, "tenantId"))];
    let Some((noun, verb, fields)) = body(event) else { return all };
    if matches!(noun, "node" | "token") && verb != "updated" {
        all.push(("cvlan", text(fields, "cvlanId")));
    }
    // A creation brings the name along; tokens have none.
    let named = matches!(verb, "created" | "admitted") || noun == "token";
    if let Some(noun) = NOUNS.iter().find(|n| **n == noun && !named) {
        // The cluster's own event names a member, or nothing.
        let noun = if *noun == "system" { "member" } else { noun };
        all.push((noun, text(fields, &format!("{noun}Id"))));
    }
    all
}

fn who(actor: &Value) -> String {
    match (text(actor, "kind").as_str(), text(actor, "name"), text(actor, "id")) {
        ("system" | "", _, _) => "system".to_owned(),
        ("user", name, id) => or(name, &id),
        (kind, name, id) => format!("{kind} {}", or(name, short(&id))),
    }
}

fn or(text: String, otherwise: &str) -> String {
    if text.is_empty() { otherwise.to_owned() } else { text }
}

fn both(v4: &str, v6: &str) -> String {
    [v4, v6].iter().filter(|a| !a.is_empty()).copied().collect::<Vec<_>>().join(" and ")
}

fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

fn shown(noun: &str) -> &str {
    if noun == "cvlan" { "CVLAN" } else { noun }
}

/// aVerbLikeThis → a verb like this
fn words(verb: &str) -> String {
    verb.chars().fold(String::new(), |mut all, c| {
        if c.is_uppercase() {
            all.push(' ');
        }
        all.extend(c.to_lowercase());
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_in_words() {
        let mut known = Known::default();
        let mut check = |event: Value, wanted: &str| {
            assert_eq!(known.what(&event), wanted, "{event}");
            known.learn(&event);
        };
        let token = "11112222-0000-4000-8000-000000000000";
        check(json!({"system": {"checkpointOpened": {}}}), "checkpoint opened");
        check(json!({"tenant": {"created": {"tenantId": "t", "slug": "acme", "name": "A"}}}), "tenant acme created");
        check(json!({"tenant": {"updated": {"tenantId": "t", "name": "ACME"}}}), "tenant acme is called \"ACME\" now");
        let office = json!({"cvlanId": "c", "name": "office", "ipv4Cidr": "10.0.0.0/24", "ipv6Cidr": "fd00::/64"});
        check(json!({"cvlan": {"created": office}}), "CVLAN office created with 10.0.0.0/24 and fd00::/64");
        check(
            json!({"token": {"created": {"tokenId": token, "cvlanId": "c", "maxUses": 3, "expiresAt": "2026-01-02T03:04:05Z"}}}),
            "token 11112222 created: 3 machines into office until 2026-01-02 03:04:05Z",
        );
        let joined = json!({"nodeId": "n", "cvlanId": "c", "name": "web-1", "ipv4": "10.0.0.2", "enrolment": {"tokenId": token}});
        check(json!({"node": {"created": joined}}), "node web-1 joined office as 10.0.0.2");
        let added = json!({"nodeId": "p", "cvlanId": "c", "name": "printer", "ipv4": "10.0.0.3"});
        check(json!({"node": {"created": added}}), "node printer was added to office as 10.0.0.3");
        check(
            json!({"node": {"endpointsChanged": {"nodeId": "n", "endpoints": ["192.0.2.1:51820"]}}}),
            "node web-1 is reached at 192.0.2.1:51820",
        );
        check(json!({"node": {"updated": {"nodeId": "n", "name": "web-2"}}}), "node web-1 renamed to web-2");
        check(json!({"node": {"updated": {"nodeId": "n", "status": "disabled"}}}), "node web-2 disabled");
        check(json!({"cvlan": {"updated": {"cvlanId": "c", "name": "lab"}}}), "CVLAN office renamed to lab");
        check(json!({"node": {"deleted": {"nodeId": "n", "cvlanId": "c"}}}), "node web-2 deleted from lab");
        check(json!({"token": {"deleted": {"tokenId": token}}}), "token 11112222 deleted");
        check(
            json!({"user": {"created": {"userId": "u", "name": "ada", "role": "member"}}}),
            "user ada created as member",
        );
        check(json!({"user": {"passwordChanged": {"userId": "u"}}}), "user ada has a new password");
        check(
            json!({"member": {"admitted": {"memberId": "7", "name": "m2", "expiresAt": "2026-01-02T03:04:05Z"}}}),
            "member m2 (7) may join until 2026-01-02 03:04:05Z",
        );
        let joined = json!({"memberId": "7", "address": "192.0.2.7:8445", "version": "0.1.0"});
        check(json!({"member": {"joined": joined}}), "member m2 is in at 192.0.2.7:8445 with version 0.1.0");
        let urls = json!(["https://a.example:8444", "https://b.example:8444"]);
        check(
            json!({"system": {"advertisementChanged": {"nodeUrls": urls, "memberId": "7"}}}),
            "machines find member m2 at https://a.example:8444, https://b.example:8444",
        );
        check(json!({"system": {"advertisementChanged": {"nodeUrls": []}}}), "machines find the controllers at no URL");
        check(json!({"member": {"removed": {"memberId": "7"}}}), "member m2 removed");
        check(json!({"node": {"keyRotated": {"nodeId": "n"}}}), "node web-2 key rotated");
        check(json!({"relay": {"created": {}}}), "something this version has no word for");
    }

    #[test]
    fn actors_in_words() {
        for (actor, wanted) in [
            (json!({"kind": "user", "id": "u", "name": "admin"}), "admin"),
            (json!({"kind": "node", "id": "n", "name": "web-1"}), "node web-1"),
            (json!({"kind": "token", "id": "11112222-0000"}), "token 11112222"),
            (json!({"kind": "system"}), "system"),
        ] {
            assert_eq!(who(&actor), wanted);
        }
    }
}
