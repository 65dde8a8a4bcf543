//! Work on a controller's folder while it does not run. The folder is locked as the controller locks it.

use anyhow::{Context, bail};
use cvlan_api::auth::password;
use cvlan_api::bootstrap::forget_changed;
use cvlan_api::cluster::{rebuild, restore};
use cvlan_api::keys::BOOTSTRAP;
use cvlan_api::server::{Core, Options, Place, StartError};
use cvlan_core::id::TenantId;
use cvlan_core::log::note::Verifier;
use cvlan_core::user::UserCommand;
use cvlan_core::{Command, Meta, Rules, Wish};
use cvlan_raft::{Disk, LogStore, VerifyError, VerifyReport, verify_dir};
use openraft_rt_tokio::TokioRuntime;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

fn lock(options: &Options) -> anyhow::Result<Arc<dyn Disk>> {
    if !options.data_dir.join("log").is_dir() {
        bail!("{} holds no log (hint: name the controller's --data-dir)", options.data_dir.display());
    }
    LogStore::open(options.log_store, &options.data_dir).map_err(|e| super::with_hint(e.into()))
}

/// No other member connects to a tool.
fn nowhere() -> Place {
    Place { address: String::new(), listener: None }
}

async fn open(options: &Options) -> anyhow::Result<Core> {
    Core::open(options, lock(options)?, nowhere()).await.map_err(super::with_hint)
}

async fn replay(options: &Options) -> anyhow::Result<VerifyReport> {
    verify_dir::<Rules, TokioRuntime>(lock(options)?).await.map_err(|e| match e {
        VerifyError::Open(e) => super::with_hint(StartError::Open(e)),
        VerifyError::History(_) => anyhow::anyhow!("{e} (hint: restore a backup)"),
        VerifyError::Entry { .. } => anyhow::anyhow!(
            "{e} (hint: `cvlan-api rebuild` takes this member anew from the others; where there are none, restore a backup)"
        ),
    })
}

pub async fn log_verify(options: &Options) -> anyhow::Result<ExitCode> {
    let report = replay(options).await?;
    println!("ok          {} events in {} entries, {} skipped", report.events, report.entries, report.skipped);
    println!("checkpoint  {}.{}", report.epoch, report.seq);
    println!("root        {}", hex::encode(report.root));
    println!("digest      {}", hex::encode(report.digest));
    println!("compared    {} checkpoints", report.checkpoints.len());
    if let Some(last) = report.checkpoints.last() {
        println!("last        event {} digest {}", last.seq, hex::encode(last.digest));
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn log_stats(options: &Options) -> anyhow::Result<ExitCode> {
    let report = replay(options).await?;
    let data = &options.data_dir;
    let (log, segments) = size(&data.join("log"))?;
    let (snapshots, kept) = size(&data.join("snapshots"))?;
    println!("epoch       {}", report.epoch);
    println!("events      {}", report.events);
    println!("entries     {} ({} skipped)", report.entries, report.skipped);
    let store = LogStore::found(data)?.unwrap_or_default();
    println!("log         {log} bytes in {segments} files, kept by {store}");
    println!("snapshots   {snapshots} bytes in {kept} files");
    Ok(ExitCode::SUCCESS)
}

fn size(folder: &Path) -> anyhow::Result<(u64, usize)> {
    if !folder.is_dir() {
        return Ok((0, 0));
    }
    let (mut bytes, mut files) = (0, 0);
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let found = entry.metadata()?;
        let (more, count) = if found.is_dir() { size(&entry.path())? } else { (found.len(), 1) };
        bytes += more;
        files += count;
    }
    Ok((bytes, files))
}

pub async fn rebuild(options: &Options, from: &[String], yes: bool) -> anyhow::Result<ExitCode> {
    let asked = rebuild::Asked { data: &options.data_dir, address: options.advertise_cluster.as_deref(), from, yes };
    rebuild::rebuild(asked, |step| println!("{step}")).await.map_err(super::with_hint)?;
    Ok(ExitCode::SUCCESS)
}

pub async fn restore(options: &Options, from: &Path, keys: &Path, voters: Option<&Path>) -> anyhow::Result<ExitCode> {
    let known = match voters {
        None => Vec::new(),
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            Verifier::parse_all(&text).with_context(|| path.display().to_string())?
        }
    };
    let data = &options.data_dir;
    let restored = restore::restored(from, keys, data, options.log_store, known).await?;
    let (backup, member) = (&restored.backup, restored.member);
    let signed = match &backup.signers {
        Some(names) => names.join(", "),
        None => "not looked at: --voters FILE".to_owned(),
    };
    println!("backup      {} events in {} entries, of epoch {}", backup.events, backup.entries, backup.epoch);
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
