//! Work on a controller's folder while it does not run. The folder is locked as the controller locks it.

use anyhow::{Context, bail};
use bytes::Bytes;
use cvlan_api::app::{now_ms, sink, stats};
use cvlan_api::auth::password;
use cvlan_api::bootstrap::forget_changed;
use cvlan_api::cluster::rebuild;
use cvlan_api::cluster::restore::{self, RestoreError};
use cvlan_api::keys::BOOTSTRAP;
use cvlan_api::server::{Core, Options, Place, StartError};
use cvlan_core::id::{Seq, TenantId};
use cvlan_core::log::export::majority;
use cvlan_core::log::held::{held_read, reaches, same};
use cvlan_core::log::note::{Note, TreeHead, Verifier};
use cvlan_core::log::stats::facts;
use cvlan_core::log::{CompactRange, Hash};
use cvlan_core::machine::Machine as _;
use cvlan_core::rules::timestamp;
use cvlan_core::user::UserCommand;
use cvlan_core::{Command, Meta, Rules, Wish};
use cvlan_proto::v1::{LogSink, LogStats};
use cvlan_raft::{Disk, LogStore, OpenError, VerifyError, VerifyReport, read_dir};
use openraft_rt_tokio::TokioRuntime;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

fn lock(options: &Options) -> anyhow::Result<Arc<dyn Disk>> {
    if !options.data_dir.join("log").is_dir() {
        bail!("{} holds no log (hint: name the controller's --data-dir)", options.data_dir.display());
    }
    let disk = LogStore::open(options.log_store, &options.data_dir).map_err(|e| super::with_hint(e.into()))?;
    match restore::half_done(&options.data_dir).map_err(|e| super::with_hint(e.into()))? {
        true => Err(super::with_hint(StartError::Restoring)),
        false => Ok(disk),
    }
}

/// No other member connects to a tool.
fn nowhere() -> Place {
    Place { address: String::new(), listener: None }
}

async fn open(options: &Options) -> anyhow::Result<Core> {
    Core::open(options, lock(options)?, nowhere()).await.map_err(super::with_hint)
}

/// Replays the log; `begins` is told the tree that it begins with, `each` of every event that follows.
async fn replay(
    options: &Options,
    begins: impl FnOnce(&CompactRange) + Send + 'static,
    each: impl FnMut(Seq, &Bytes) + Send + 'static,
) -> anyhow::Result<VerifyReport> {
    read_dir::<Rules, TokioRuntime>(lock(options)?, begins, each).await.map_err(|e| match e {
        VerifyError::Open(e) => super::with_hint(StartError::Open(e)),
        VerifyError::History(_) => anyhow::anyhow!("{e} (hint: restore a backup)"),
        VerifyError::Entry { .. } => anyhow::anyhow!(
            "{e} (hint: `cvlan-api rebuild` takes this member anew from the others; where there are none, restore a backup)"
        ),
    })
}

/// A tree that grows, and its root at the sizes that are asked for.
#[derive(Default)]
struct Roots {
    tree: CompactRange,
    wanted: BTreeSet<u64>,
    found: BTreeMap<u64, Hash>,
}

impl Roots {
    fn grown(&mut self, by: impl FnOnce(&mut CompactRange)) {
        by(&mut self.tree);
        if self.wanted.contains(&self.tree.size()) {
            self.found.insert(self.tree.size(), self.tree.root());
        }
    }
}

pub async fn log_verify(options: &Options, keys: Option<&Path>, held: &[PathBuf]) -> anyhow::Result<ExitCode> {
    let known = verifiers(keys)?;
    let read = |path: &PathBuf| {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        Ok((path.clone(), held_read(&bytes).with_context(|| path.display().to_string())?))
    };
    let mut compared = held.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    let signed = if known.is_empty() { None } else { Some(newest_signed(&options.data_dir, &known)?) };
    compared.extend(signed.iter().map(|(path, head, _)| (path.clone(), head.clone())));
    let wanted = compared.iter().map(|(_, head)| head.size).collect();
    let roots = Arc::new(Mutex::new(Roots { wanted, ..Roots::default() }));
    let (begins, grows) = (roots.clone(), roots.clone());
    let begin = move |base: &CompactRange| {
        begins.lock().unwrap_or_else(PoisonError::into_inner).grown(|tree| {
            tree.clone_from(base);
        })
    };
    let each =
        move |_, event: &Bytes| grows.lock().unwrap_or_else(PoisonError::into_inner).grown(|tree| tree.push(event));
    let report = replay(options, begin, each).await?;
    let roots = roots.lock().unwrap_or_else(PoisonError::into_inner);
    for (path, head) in &compared {
        if head.size + 1 < report.from.0 {
            bail!(
                "{}: of event {}, and the history of this folder begins with event {} (history_gone) (hint: a running member proves \
                 what is gone too: `cvlanctl log verify --held`)",
                path.display(),
                head.size,
                report.from
            );
        }
        let root = roots.found.get(&head.size).unwrap_or(&report.root);
        reaches(head, report.events).and_then(|()| same(head, root)).map_err(|e| {
            let hint = "keep this folder as it is; another member, or a backup, has what is missing";
            anyhow::anyhow!("{}: {e} ({}) (hint: {hint})", path.display(), e.code())
        })?;
    }
    let events = report.events + 1 - report.from.0;
    println!("ok          {events} events in {} entries, {} skipped", report.entries, report.skipped);
    if report.from > Seq(1) {
        println!(
            "replayed    from event {} on: history is not kept from before, but as the state after it",
            report.from
        );
    }
    println!("checkpoint  {}.{}", report.epoch, report.seq);
    println!("root        {}", hex::encode(report.root));
    println!("digest      {}", hex::encode(report.digest));
    println!("compared    {} checkpoints", report.checkpoints.len());
    if let Some(last) = report.checkpoints.last() {
        println!("last        event {} digest {}", last.seq, hex::encode(last.digest));
    }
    if let Some((_, head, signers)) = &signed {
        println!("signed by   {}, up to event {}", signers.join(", "), head.size);
    }
    if !held.is_empty() {
        let sizes: Vec<_> = compared.iter().take(held.len()).map(|(_, head)| format!("event {}", head.size)).collect();
        println!("continues   {}", sizes.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

/// The newest note of the folder that more than half of these have signed.
fn newest_signed(data: &Path, known: &[Verifier]) -> anyhow::Result<(PathBuf, TreeHead, Vec<String>)> {
    let folder = data.join("notes");
    let mut paths = Vec::new();
    if folder.is_dir() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            paths.push(entry?.path());
        }
    }
    // Named by their sizes.
    paths.sort();
    let mut why = "there is none".to_owned();
    for path in paths.into_iter().rev().filter(|path| path.extension().is_some_and(|e| e == "note")) {
        let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let note = match Note::parse(&bytes) {
            Ok(note) => note,
            Err(e) => {
                why = format!("{}: {e}", path.display());
                continue;
            }
        };
        match majority(&note, known) {
            Ok(signers) => {
                let head = TreeHead::parse(note.text()).with_context(|| path.display().to_string())?;
                return Ok((path, head, signers));
            }
            Err(no) => why = format!("{}: {no}", path.display()),
        }
    }
    bail!(
        "no note in {} is signed by more than half of the voters whose keys you gave: {why} (hint: `cvlanctl log keys -o name` \
         prints the keys of the epoch that runs; `cvlanctl log checkpoint` has a note made)",
        folder.display()
    )
}

/// The voters' keys; none without a file.
fn verifiers(path: Option<&Path>) -> anyhow::Result<Vec<Verifier>> {
    let Some(path) = path else { return Ok(Vec::new()) };
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Verifier::parse_all(&text).with_context(|| path.display().to_string())
}

pub async fn log_stats(options: &Options) -> anyhow::Result<ExitCode> {
    let first = Arc::new(Mutex::new(None));
    let sees = first.clone();
    let report = replay(
        options,
        |_| {},
        move |seq, event| {
            sees.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| (seq, event.clone()));
        },
    );
    let report = report.await?;
    let first = first.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let first_time = match &first {
        Some((_, bytes)) => Some(timestamp(Rules::time_ms(&Rules::decode(bytes)?))),
        None => None,
    };
    let data = &options.data_dir;
    let (log_bytes, segments) = stats::segments(data).with_context(|| data.display().to_string())?;
    let sinks = sink::places(data).with_context(|| data.display().to_string())?;
    // One of another epoch begins anew.
    let sinks = sinks.into_iter().map(|(sink, at)| LogSink {
        sink,
        seq: if at.epoch == report.epoch { at.seq.0 } else { 0 },
        ..LogSink::default()
    });
    let found = LogStats {
        epoch: report.epoch.to_string(),
        events: report.events,
        entries: report.all_entries,
        log_bytes,
        segments,
        first_seq: first.map_or(0, |(seq, _)| seq.0),
        first_time,
        tree_size: report.events,
        tree_root: hex::encode(report.root),
        snapshots: stats::snapshots(data).with_context(|| data.display().to_string())?,
        sinks: sinks.collect(),
        store: LogStore::found(data)?.unwrap_or_default().to_string(),
        ..LogStats::default()
    };
    for (name, value) in facts(&found, now_ms()) {
        println!("{name:<11} {value}");
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn rebuild(options: &Options, from: &[String], yes: bool) -> anyhow::Result<ExitCode> {
    let asked = rebuild::Asked { data: &options.data_dir, address: options.advertise_cluster.as_deref(), from, yes };
    rebuild::rebuild(asked, |step| println!("{step}")).await.map_err(super::with_hint)?;
    Ok(ExitCode::SUCCESS)
}

pub async fn restore(options: &Options, from: &Path, keys: &Path, voters: Option<&Path>) -> anyhow::Result<ExitCode> {
    let known = verifiers(voters)?;
    let data = &options.data_dir;
    let restored = restore::restored(from, keys, data, options.log_store, known).await.map_err(|e| match e {
        RestoreError::Log(e @ OpenError::Locked { .. }) => super::with_hint(e.into()),
        e => e.into(),
    })?;
    let (backup, member) = (&restored.backup, restored.member);
    let signed = match &backup.signers {
        Some(names) => names.join(", "),
        None => "not looked at: --voters FILE".to_owned(),
    };
    let events = backup.events + 1 - backup.from.0;
    println!("backup      {events} events in {} entries, of epoch {}", backup.entries, backup.epoch);
    if backup.from > Seq(1) {
        println!("history     begins with event {}; what was before is in the state", backup.from);
    }
    println!("signed by   {signed}");
    println!("restored    member {member}, alone, in epoch {}", restored.epoch);
    println!(
        "now         start cvlan-api --data-dir {} as that member was started; then `cvlanctl cluster add`",
        data.display()
    );
    Ok(ExitCode::SUCCESS)
}

pub async fn views_rebuild(options: &Options) -> anyhow::Result<ExitCode> {
    let disk = lock(options)?;
    for tail in ["", "-wal", "-shm"] {
        let path = options.data_dir.join(format!("views.db{tail}"));
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).context(path.display().to_string()),
            Ok(()) | Err(_) => {}
        }
    }
    let core = Core::open(options, disk, nowhere()).await.map_err(super::with_hint)?;
    let reached = core.views.reach(core.log.head().checkpoint()).await;
    let at = core.views.checkpoint();
    core.close().await;
    reached.map_err(|p| anyhow::anyhow!("{}", p.detail))?;
    println!("views.db rebuilt at {at}");
    Ok(ExitCode::SUCCESS)
}

pub async fn reset_password(options: &Options, name: &str) -> anyhow::Result<ExitCode> {
    let core = open(options).await?;
    let done = change(&core, name).await;
    core.close().await;
    let password = done?;
    println!("{name}  {password}");
    println!("every session of {name} has ended; log in and change it");
    Ok(ExitCode::SUCCESS)
}

async fn change(core: &Core, name: &str) -> anyhow::Result<String> {
    let head = core.log.head();
    let Some(user) = head.machine.user_find(TenantId::default(), name) else {
        bail!("there is no global user {name:?} (hint: --name)");
    };
    let password = password::generate();
    let password_hash = password::hash_now(&password).map_err(|p| anyhow::anyhow!("{}", p.detail))?;
    let wish = Wish::User(UserCommand::Password { id: user.id, password_hash });
    let meta = Meta {
        id: cvlan_core::id::CommandId(uuid::Uuid::new_v4()),
        reason: "cvlan-api admin reset-password".to_owned(),
        ..Meta::default()
    };
    core.log.write(Command { meta, wish }).await.context("writing the new password")?;
    if let Some(file) = core.keys.json_read(BOOTSTRAP)? {
        forget_changed(&core.log, &core.keys, &file)?;
    }
    Ok(password)
}
