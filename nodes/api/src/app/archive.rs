//! History that is not kept any longer is written to a folder first, as an export that proves itself.
//!
//! ```text
//! the log: events before `first` need not be kept ─► .NAME.part, synced, read back and checked ─► NAME ─► they may go here
//! ```
//! What lies in the folder says how far it got: a member that starts again goes on there. Until then it holds its history.

use super::App;
use cvlan_core::Rules;
use cvlan_core::id::Seq;
use cvlan_core::log::export::{Checker, Exporter, FORMAT, MAGIC, record};
use cvlan_core::log::merkle::leaf_hash;
use cvlan_core::log::records::{Splitter, record_write};
use cvlan_core::machine::Machine;
use cvlan_proto::v1::export_record::Kind;
use cvlan_proto::v1::{ExportEvent, ExportHeader, ExportRecord};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Events read at once.
const PAGE: usize = 1024;
/// Bytes read at once.
const PIECE: usize = 1 << 20;
/// What a file's name ends with.
const ENDING: &str = "cvexport";

/// Writes what is to go, for as long as the controller runs.
pub async fn keep(app: Arc<App>, folder: PathBuf, every: Duration) {
    let mut said = String::new();
    loop {
        match once(&app, &folder).await {
            Ok(()) => said.clear(),
            Err(why) => {
                if said != why {
                    tracing::error!(why, "history that is to go was not written; it stays, and is tried again");
                }
                said = why;
            }
        }
        sleep(every).await;
    }
}

/// Writes what is to go and is not there yet; then lets go of it.
async fn once(app: &App, folder: &Path) -> Result<(), String> {
    let head = app.log.head();
    let first = Rules::history_from(&head.machine);
    let (there, prefix) = (folder.to_owned(), prefix(app));
    let done = blocking(move || {
        std::fs::create_dir_all(&there)?;
        reached(&there, &prefix)
    })
    .await?;
    // What was gone before a folder was named is not to be had any more.
    let from = Seq(done + 1).max(Seq(app.log.status().history_from));
    if first > from {
        write(app, folder, from, Seq(first.0 - 1)).await?;
        tracing::info!(from = from.0, to = first.0 - 1, "history that is to go was written, and read back");
    }
    app.log.history_hold(first.max(from));
    Ok(())
}

/// This log's files begin with it.
fn prefix(app: &App) -> String {
    format!("history-{}-m{}-", app.log.head().epoch.to_string().get(..8).unwrap_or_default(), app.member)
}

/// The last event that is in the folder, of those that follow each other.
fn reached(folder: &Path, prefix: &str) -> io::Result<u64> {
    let mut ends = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let range = name.to_str().and_then(|name| name.strip_prefix(prefix)?.strip_suffix(&format!(".{ENDING}")));
        ends.extend(range.and_then(|range| range.split_once('-')?.1.parse::<u64>().ok()));
    }
    Ok(ends.into_iter().max().unwrap_or_default())
}

async fn blocking<T: Send + 'static>(job: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(job).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

async fn write(app: &App, folder: &Path, from: Seq, to: Seq) -> Result<(), String> {
    let name = format!("{}{:012}-{:012}.{ENDING}", prefix(app), from.0, to.0);
    let (path, beside) = (folder.join(&name), folder.join(format!(".{name}.part")));
    let signed = app.notary.collect(&app.voters, to).await.map_err(|problem| problem.detail.into_owned())?;
    if !signed.valid {
        return Err("too few voters could be asked to sign it".to_owned());
    }
    let hidden = app.log.hide(Seq(from.0 - 1), Vec::new()).await.map_err(|e| e.to_string())?;
    let (epoch, note) = (app.log.head().epoch.to_string(), signed.note.to_string());
    let header = ExportHeader { epoch, tenant_id: String::new(), from_seq: from.0, to_seq: to.0, note };
    let mut exporter = Exporter::new(Vec::new());
    let mut records = vec![record(Kind::Header(header))];
    records.extend(hidden.into_iter().map(|(level, root)| exporter.hide_subtree(level, root)));
    let part = beside.clone();
    let mut file = blocking(move || {
        let mut file = File::create(&part)?;
        file.write_all(&[MAGIC.as_slice(), &[FORMAT]].concat())?;
        Ok(file)
    })
    .await?;
    let mut next = from;
    while next <= to {
        let page = app.log.history(next, PAGE.min((to.0 - next.0 + 1) as usize)).await.map_err(|e| e.to_string())?;
        let Some((last, _)) = page.last() else { return Err(format!("event {next} is not here")) };
        next = Seq(last.0 + 1);
        for (_, event) in page {
            let leaf = leaf_hash(&event).to_vec().into();
            exporter.show(ExportEvent { event, leaf, redacted: false, decoded: None }, &mut records);
        }
        file = append(file, &mut records).await?;
    }
    exporter.end(&mut records);
    let file = append(file, &mut records).await?;
    let folder = folder.to_owned();
    blocking(move || {
        file.sync_all()?;
        checked(&beside, from, to).map_err(io::Error::other)?;
        std::fs::rename(&beside, &path)?;
        File::open(&folder)?.sync_all()
    })
    .await
}

/// Synced piece by piece: all of it at once would hold up the log's own syncs.
async fn append(mut file: File, records: &mut Vec<ExportRecord>) -> Result<File, String> {
    let mut bytes = Vec::new();
    records.drain(..).for_each(|record| record_write(&record, &mut bytes));
    blocking(move || {
        file.write_all(&bytes)?;
        file.sync_data()?;
        Ok(file)
    })
    .await
}

/// Reads it back: that it is in order, and reaches from event `from` to event `to`.
fn checked(path: &Path, from: Seq, to: Seq) -> Result<(), String> {
    let (mut splitter, mut checker) = (Splitter::new(MAGIC, FORMAT), Checker::new(Vec::new(), Vec::new(), from));
    let mut file = File::open(path).map_err(|e| e.to_string())?;
    let mut piece = vec![0; PIECE];
    loop {
        let length = file.read(&mut piece).map_err(|e| e.to_string())?;
        if length == 0 {
            break;
        }
        splitter.push(piece.get(..length).unwrap_or_default());
        while let Some((record, _)) = splitter.take::<ExportRecord>()? {
            checker.record(record).map_err(|fault| fault.to_string())?;
        }
    }
    if !splitter.is_empty() {
        return Err("it ends within a record".to_owned());
    }
    let report = checker.finish().map_err(|fault| fault.to_string())?;
    match (report.from, report.to, report.hidden) == (from, to, from.0 - 1) {
        true => Ok(()),
        false => Err(format!("it shows events {} to {}", report.from, report.to)),
    }
}
