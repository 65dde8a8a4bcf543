//! The record as a stream that proves itself (`cvlan_core::log::export`): as NDJSON, or compact.
//!
//! ```text
//!  signed tree head at `to` ─► header ─► roots that stand for what lies before `from` ─► page by page: events that the
//!  caller may audit, without secrets; hashes for the others ─► end, where the root is the one that was signed
//! ```
//! Where something goes wrong on the way, the body is broken and has no end, which whoever takes it notices.

use super::call::Call;
use super::reply;
use crate::app::backup::Backup;
use crate::app::event::{may, visible};
use crate::app::proof::beyond;
use crate::app::{App, Output};
use crate::auth::Session;
use crate::doors::body::{self, Pieces};
use crate::problem::Problem;
use axum::response::Response;
use bytes::Bytes;
use cvlan_core::Rules;
use cvlan_core::access::{Permission, tenant_unknown};
use cvlan_core::id::{Seq, TenantId};
use cvlan_core::log::export::{Exporter, FORMAT, MAGIC, record};
use cvlan_core::log::merkle::{CompactRange, Hash, leaf_hash};
use cvlan_core::log::note::TreeHead;
use cvlan_core::log::records::record_write;
use cvlan_core::machine::Machine;
use cvlan_core::redact::redact;
use cvlan_core::rules::tenant_of;
use cvlan_proto::Message;
use cvlan_proto::v1::export_record::Kind;
use cvlan_proto::v1::{ExportEvent, ExportHeader, ExportRecord};
use cvlan_raft::Reading;
use http::{HeaderName, HeaderValue, StatusCode, header};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::timeout;

/// Exports and backups at once.
pub const EXPORTS_MAX: usize = 8;
/// A reader takes a piece within this.
const SEND_TIME: Duration = Duration::from_secs(30);
/// Only where less than a majority of the voters has signed it.
pub const UNSIGNED: HeaderName = HeaderName::from_static("cvlan-no-majority");
/// Events read at once.
const PAGE: usize = 1024;
/// Older sizes that the tree can be shown at.
const SINCE_MAX: usize = 64;

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Lines,
    Binary,
}

/// GET /log/export.
pub async fn answer(c: Call) -> Result<Response, Problem> {
    let (app, head, session) = (c.app.clone(), c.head.clone(), c.caller()?.session.clone());
    let form = match c.query.get("form") {
        None | Some("ndjson") => Form::Lines,
        Some("binary") => Form::Binary,
        Some(_) => return Err(Problem::invalid("query_invalid", "form is ndjson or binary")),
    };
    let from = c.query.number("from", 1)?;
    let to = c.query.number("to", head.seq.0)?;
    if to == 0 || to > head.seq.0 {
        return Err(beyond("to", to, head.seq));
    }
    if from == 0 || from > to {
        return Err(beyond("from", from, Seq(to)));
    }
    let since = since(c.query.get("since").unwrap_or_default())?;
    let home = session.user.tenant;
    let tenant = match c.query.get("tenant").filter(|name| !name.is_empty()) {
        Some(name) => head.machine.tenant_find(name).map(|t| t.record.id).ok_or_else(tenant_unknown)?,
        None => home,
    };
    if !home.is_nil() && tenant != home {
        return Err(tenant_unknown().into());
    }
    let permit = turn(&app)?;
    // Nobody of one tenant holds what is everybody's.
    let reading = home.is_nil().then(|| app.log.history_reading(Seq(from)));
    // Before the first byte, so that what is not here any more is an answer of its own.
    app.log.history(Seq(from), 1).await?;
    let signed = app.notary.collect(&app.voters, Seq(to)).await?;
    let root = TreeHead::parse(signed.note.text()).map_err(Problem::internal)?.root;
    let hidden = app.log.hide(Seq(from - 1), since.iter().copied().map(Seq).collect()).await?;
    let tenant_id = if tenant.is_nil() { String::new() } else { tenant.to_string() };
    let note = signed.note.to_string();
    let header = ExportHeader { epoch: head.epoch.to_string(), tenant_id, from_seq: from, to_seq: to, note };
    let (tx, body) = body::whole();
    let tree = CompactRange::default();
    let writer = Writer { app, session, tenant, form, since, next: from, to, root, tree, reading, tx };
    tokio::spawn(async move {
        if let Err(why) = writer.run(header, hidden).await {
            tracing::warn!(why, "an export was ended");
        }
        drop(permit);
    });
    let mut response = reply::bare(StatusCode::OK, &Output::read(&head, ()), body)?;
    let kind = match form {
        Form::Lines => "application/x-ndjson",
        Form::Binary => "application/vnd.cvlan.export",
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(if signed.valid { response } else { unsigned(response) })
}

/// GET /cluster/backup: the log as far back as it is here, with the hashes that are in it; no secret in the clear.
pub async fn backup(c: Call) -> Result<Response, Problem> {
    let (app, head) = (c.app.clone(), c.head.clone());
    let from = c.query.number("from", 1)?;
    let to = c.query.get("to").map(|_| c.query.number("to", 0)).transpose()?;
    let permit = turn(&app)?;
    let (session, draining) = (c.caller()?.session.clone(), app.draining.subscribe());
    let mut backup = Backup::begin(app.clone(), from, to).await?;
    let signed = backup.signed;
    let (tx, body) = body::whole();
    tokio::spawn(async move {
        loop {
            // It has everything of everybody: whoever may not have it any more gets nothing more of it.
            if let Some(why) = over(&app, &session, &draining, Permission::ClusterWrite) {
                break tracing::warn!(why, "a backup was ended");
            }
            match backup.piece().await {
                Ok(Some(piece)) => {
                    if let Err(why) = sent(&tx, piece).await {
                        break tracing::warn!(why, "a backup was ended");
                    }
                }
                Ok(None) => {
                    app.backups.sent(backup.to());
                    break tx.end();
                }
                Err(problem) => break tracing::warn!(detail = %problem.detail, "a backup was ended"),
            }
        }
        drop(permit);
    });
    let mut response = reply::bare(StatusCode::OK, &Output::read(&head, ()), body)?;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/vnd.cvlan.backup"));
    Ok(if signed { response } else { unsigned(response) })
}

/// Says that less than a majority of the voters has signed it.
pub fn unsigned(mut response: Response) -> Response {
    response.headers_mut().insert(UNSIGNED, HeaderValue::from_static("true"));
    response
}

fn turn(app: &App) -> Result<OwnedSemaphorePermit, Problem> {
    app.exports.clone().try_acquire_owned().map_err(|_| {
        let detail = format!("{EXPORTS_MAX} exports and backups are being made here already; try again");
        Problem::later(StatusCode::SERVICE_UNAVAILABLE, "busy", detail, 5)
    })
}

/// Why whoever has begun is to get no more.
fn over(
    app: &App,
    session: &Session,
    draining: &watch::Receiver<bool>,
    permission: Permission,
) -> Option<&'static str> {
    if *draining.borrow() {
        return Some("the controller ends");
    }
    (!may(app, session, permission)).then_some("its caller may not have it any more")
}

/// Whoever takes nothing for so long has its turn no longer.
async fn sent(tx: &Pieces, piece: Bytes) -> Result<(), String> {
    let sent = timeout(SEND_TIME, tx.send(piece)).await;
    sent.map_err(|_| "its reader takes nothing".to_owned())?.map_err(|_| "its reader has gone".to_owned())
}

fn since(text: &str) -> Result<Vec<u64>, Problem> {
    let wrong =
        || Problem::invalid("query_invalid", format!("since is up to {SINCE_MAX} numbers of events, as in 100,2000"));
    let sizes: Result<Vec<u64>, _> = text.split(',').filter(|part| !part.is_empty()).map(str::parse).collect();
    sizes.ok().filter(|sizes| sizes.len() <= SINCE_MAX).ok_or_else(wrong)
}

struct Writer {
    app: Arc<App>,
    session: Session,
    tenant: TenantId,
    form: Form,
    since: Vec<u64>,
    next: u64,
    to: u64,
    root: Hash,
    tree: CompactRange,
    reading: Option<Reading>,
    tx: Pieces,
}

impl Writer {
    async fn run(mut self, header: ExportHeader, hidden: Vec<(u32, Hash)>) -> Result<(), String> {
        let mut exporter = Exporter::new(std::mem::take(&mut self.since));
        let mut records = vec![record(Kind::Header(header))];
        for (level, root) in hidden {
            self.tree.push_subtree(level, root);
            records.push(exporter.hide_subtree(level, root));
        }
        let begin = if self.form == Form::Binary { [MAGIC.as_slice(), &[FORMAT]].concat() } else { Vec::new() };
        self.send(begin, &mut records).await?;
        let draining = self.app.draining.subscribe();
        while self.next <= self.to {
            if let Some(why) = over(&self.app, &self.session, &draining, Permission::AuditRead) {
                return Err(why.to_owned());
            }
            if let Some(reading) = &self.reading {
                reading.at(Seq(self.next));
            }
            let page = self.app.log.history(Seq(self.next), PAGE.min((self.to - self.next + 1) as usize)).await;
            let page = page.map_err(|e| e.to_string())?;
            if page.is_empty() {
                return Err(format!("event {} is not here", self.next));
            }
            for (seq, bytes) in page {
                self.event(&mut exporter, seq, bytes, &mut records)?;
            }
            self.send(Vec::new(), &mut records).await?;
        }
        if self.tree.root() != self.root {
            return Err("the events do not come to the root that was signed".to_owned());
        }
        exporter.end(&mut records);
        self.send(Vec::new(), &mut records).await?;
        self.tx.end();
        Ok(())
    }

    fn event(
        &mut self,
        exporter: &mut Exporter,
        seq: Seq,
        bytes: Bytes,
        records: &mut Vec<ExportRecord>,
    ) -> Result<(), String> {
        let leaf = leaf_hash(&bytes);
        self.tree.push_hash(leaf);
        self.next = seq.0 + 1;
        let event = Rules::decode(&bytes).map_err(|e| e.to_string())?;
        let wanted = self.tenant.is_nil() || tenant_of(&event) == self.tenant;
        if !wanted || !visible(&self.session.user, &event) {
            exporter.hide(seq, leaf, records);
            return Ok(());
        }
        let mut shown = event;
        let redacted = redact(&mut shown);
        let event = if redacted { shown.encode_to_vec().into() } else { bytes };
        let decoded = (self.form == Form::Lines).then_some(shown);
        let leaf = Bytes::copy_from_slice(&leaf);
        exporter.show(ExportEvent { event, leaf, redacted, decoded }, records);
        Ok(())
    }

    async fn send(&self, mut out: Vec<u8>, records: &mut Vec<ExportRecord>) -> Result<(), String> {
        for record in records.drain(..) {
            match self.form {
                Form::Binary => record_write(&record, &mut out),
                Form::Lines => {
                    serde_json::to_writer(&mut out, &record).map_err(|e| e.to_string())?;
                    out.push(b'\n');
                }
            }
        }
        sent(&self.tx, out.into()).await
    }
}
