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
/// What one that is not whole ends with.
const PART: &str = ".part";

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
    let mut from = Seq(done + 1);
    // Nothing goes that is not there.
    app.log.history_hold(from.min(first));
    if from >= first {
        return Ok(());
    }
    let begins = Seq(app.log.status().history_from);
    if begins > from {
        if !app.log.history_sought() {
            return Err(format!("events {from} to {} are being fetched from other members", begins.0 - 1));
        }
        tracing::error!(
            from = from.0,
            to = begins.0 - 1,
            "these events are on no member any more: they were not written"
        );
        from = begins;
    }
    if from < first {
        write(app, folder, from, Seq(first.0 - 1)).await?;
        tracing::info!(from = from.0, to = first.0 - 1, "history that is to go was written, and read back");
    }
    app.log.history_hold(first);
    Ok(())
}

/// This log's files begin with it.
fn prefix(app: &App) -> String {
    format!("history-{}-m{}-", app.log.head().epoch.to_string().get(..8).unwrap_or_default(), app.member)
}

/// The last event that is in the folder; what is not whole is removed.
fn reached(folder: &Path, prefix: &str) -> io::Result<u64> {
    let mut last = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.starts_with(&format!(".{prefix}")) && name.ends_with(PART) {
            std::fs::remove_file(entry.path())?;
        }
        let range = name.strip_prefix(prefix).and_then(|name| name.strip_suffix(&format!(".{ENDING}")));
        let end = range.and_then(|range| range.split_once('-')?.1.parse::<u64>().ok());
        last = last.max(end.unwrap_or_default());
    }
    Ok(last)
}

async fn blocking<T: Send + 'static>(job: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(job).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

async fn write(app: &App, folder: &Path, from: Seq, to: Seq) -> Result<(), String> {
    let name = format!("{}{:012}-{:012}.{ENDING}", prefix(app), from.0, to.0);
    let (path, beside) = (folder.join(&name), folder.join(format!(".{name}{PART}")));
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
