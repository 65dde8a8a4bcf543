//! Which thing a command is about: by id, exact name, or the start of either where only one thing starts so.

use crate::client::{Client, encoded, segment};
use crate::failure::Failure;
use crate::print::{Noun, text};
use clap::Args;
use serde_json::Value;

/// Candidates that an ambiguous target is answered with.
const CANDIDATES_MAX: usize = 10;

/// One thing.
#[derive(Args)]
pub struct Target {
    /// Id, name, or the start of one
    pub target: String,
}

/// One thing, to be deleted.
#[derive(Args)]
pub struct Doomed {
    /// Id, name, or the start of one
    pub target: String,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// Finds it below `home` ("/tenants/acme", or "" for what is nobody's).
pub async fn find(client: &mut Client, noun: &Noun, home: &str, wanted: &str) -> Result<Value, Failure> {
    let base = format!("{home}/{}", noun.path);
    let failure = match client.get(&format!("{base}/{}", segment(wanted)?)).await {
        Ok(item) => return Ok(item),
        Err(failure) => failure,
    };
    if !failure.is_unresolved(noun) {
        return Err(failure);
    }
    // The search finds parts of names, addresses and starts of ids; only names and ids count here.
    let found = client.list(&format!("{base}?q={}", encoded(wanted)), crate::client::LIST_MAX).await?;
    let exact: Vec<_> = found.iter().filter(|i| noun.name_of(i) == wanted).collect();
    let starts = |i: &&Value| noun.name_of(i).starts_with(wanted) || text(i, "id").starts_with(wanted);
    let candidates = if exact.is_empty() { found.iter().filter(starts).collect() } else { exact };
    match candidates.as_slice() {
        [] => Err(failure),
        [one] => client.get(&format!("{base}/{}", segment(&text(one, "id"))?)).await,
        several => Err(ambiguous(noun, wanted, several)),
    }
}

fn ambiguous(noun: &Noun, wanted: &str, several: &[&Value]) -> Failure {
    let mut named: Vec<_> = several
        .iter()
        .take(CANDIDATES_MAX)
        .map(|i| match (noun.name_of(i), text(i, "id")) {
            (name, id) if name == id => id,
            (name, id) => format!("{name} ({id})"),
        })
        .collect();
    if several.len() > named.len() {
        named.push(format!("{} more", several.len() - named.len()));
    }
    let detail = format!("{wanted:?} may be {} {}: {}", several.len(), noun.path, named.join(", "));
    Failure::new("name_ambiguous", detail).hint("say more of the name, or the id")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn candidates_are_named_and_bounded() {
        let items: Vec<_> = (0..12).map(|n| json!({"id": format!("id-{n}"), "name": format!("web-{n}")})).collect();
        let failure = ambiguous(&crate::node::NOUN, "web", &items.iter().collect::<Vec<_>>());
        assert!(failure.detail.starts_with("\"web\" may be 12 nodes: web-0 (id-0), web-1 (id-1), "), "{failure}");
        assert!(failure.detail.ends_with("web-9 (id-9), 2 more"), "{failure}");
    }
}
