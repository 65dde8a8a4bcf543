//! `cvlanctl status`: where one is, and how it is there.

use crate::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::print::{Format, document, lines, number, sheet, text};
use serde_json::Value;

/// The cluster where one may see it; a tenant's user sees its tenant.
pub async fn run(global: &Global) -> Result<(), Failure> {
    let mut client = Client::open(global)?;
    let me = client.get("/me").await?;
    if !text(&me, "tenantId").is_empty() {
        return tenant(client, global, &me).await;
    }
    let cluster = client.get("/cluster").await?;
    match global.output {
        Format::Json | Format::Yaml => document(global.output, &cluster),
        Format::Name => lines([text(&cluster, "checkpoint")]),
        Format::Table | Format::Wide => {
            let count = |name: &str| number(&cluster, name);
            let behind = seq(&text(&cluster, "checkpoint")).saturating_sub(seq(&text(&cluster, "viewCheckpoint")));
            let mut facts = here(&client, &me);
            facts.extend([
                ("version", text(&cluster, "version")),
                ("member", format!("{} ({}, term {})", count("memberId"), text(&cluster, "role"), count("term"))),
                ("cluster", cluster_line(&cluster)),
                ("up", duration(count("uptimeSeconds"))),
                ("nodes", format!("{} of {} online", count("nodesOnline"), count("nodes"))),
                ("cvlans", format!("{} in {} tenants", count("cvlans"), count("tenants"))),
                ("tokens", count("tokens").to_string()),
                ("users", count("users").to_string()),
                ("log", format!("event {} of epoch {}", seq(&text(&cluster, "checkpoint")), text(&cluster, "epoch"))),
                ("root", text(&cluster, "root")),
                ("digest", digest(&cluster)),
                ("state", diverged(&cluster)),
                ("views", if behind == 0 { "up to date".to_owned() } else { format!("{behind} events behind") }),
                ("machines", text(&cluster, "nodeUrls").replace(',', ", ")),
                ("ca", text(&cluster, "caFingerprint")),
            ]);
            if let Some(view) = cluster.get("postgres").filter(|view| !view.is_null()) {
                facts.push(("postgres", postgres(view, seq(&text(&cluster, "checkpoint")))));
            }
            sheet(&facts)
        }
    }
}

/// postgres://ann@db:5432/net, 3 events behind, written by this member.
fn postgres(view: &Value, head: u64) -> String {
    let is = |name: &str| view.get(name).and_then(Value::as_bool).unwrap_or_default();
    let (url, error) = (text(view, "url"), text(view, "error"));
    let behind = match head.saturating_sub(seq(&text(view, "checkpoint"))) {
        0 => "up to date".to_owned(),
        n => format!("{n} events behind"),
    };
    match (is("up"), is("writer")) {
        (true, true) => format!("{behind}, written by this member: {url}"),
        (true, false) => format!("{behind}, not written by this member ({error}): {url}"),
        (false, _) => format!("AWAY: {error}: {url}"),
    }
}

/// Does this member have the state that the leader has?
fn diverged(cluster: &Value) -> String {
    match number(cluster, "divergedSeq") {
        0 => "as the leader's".to_owned(),
        seq => format!("DIFFERS from the leader's at event {seq}: stop this member, then `cvlan-api rebuild` there"),
    }
}

/// 3 members, 3 vote; leader m2.
fn cluster_line(cluster: &Value) -> String {
    let members = cluster.get("members").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let voters = members.iter().filter(|m| m.get("voter").and_then(Value::as_bool).unwrap_or_default()).count();
    let leader = members.iter().find(|m| text(m, "role") == "leader").map(|m| text(m, "name"));
    let leads = leader.map_or_else(|| "NO LEADER".to_owned(), |name| format!("{name} leads"));
    format!("{} of {} members vote; {leads}", voters, members.len())
}

fn here(client: &Client, me: &Value) -> Vec<(&'static str, String)> {
    let tenant = &client.context.tenant;
    vec![
        ("controller", client.context.url.clone()),
        ("user", format!("{} ({})", text(me, "name"), text(me, "role"))),
        ("tenant", if tenant.is_empty() { "no default; -t names one".to_owned() } else { tenant.clone() }),
    ]
}

async fn tenant(mut client: Client, global: &Global, me: &Value) -> Result<(), Failure> {
    let tenant = client.get(&format!("/tenants/{}", text(me, "tenantId"))).await?;
    match global.output {
        Format::Json | Format::Yaml => document(global.output, &tenant),
        Format::Name => lines([text(&tenant, "slug")]),
        Format::Table | Format::Wide => {
            let mut facts = here(&client, me);
            facts.push(("nodes", number(&tenant, "nodeCount").to_string()));
            facts.push(("cvlans", number(&tenant, "cvlanCount").to_string()));
            facts.push(("log", format!("event {}", seq(&client.context.checkpoint))));
            sheet(&facts)
        }
    }
}

/// The number in EPOCH.SEQ.
fn seq(checkpoint: &str) -> u64 {
    checkpoint.rsplit_once('.').and_then(|(_, seq)| seq.parse().ok()).unwrap_or_default()
}

fn digest(cluster: &Value) -> String {
    match number(cluster, "digestSeq") {
        0 => "none yet; `cvlanctl log checkpoint` makes one".to_owned(),
        seq => format!("{} at event {seq}", text(cluster, "digest")),
    }
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}
