//! This member's certificates: for its doors, and what it proves itself with. Signed here where the CA's key is, else by a
//! voter from a CSR: the keys that they are for never leave this machine.
//!
//! ```text
//!  start    voter: a new key, in memory        follower: keys/doors.key and keys/doors.pem, as long as they fit; else a CSR
//!  daily    the doors' at a third of its life, the member's at two thirds
//! ```

use super::identity::{Fit, IdentityError, certificate_write, certified, due, fits, own_key};
use crate::app::{App, now_ms};
use crate::ca::{CaError, Host, Live, SERVER_MS, Server, server_read};
use crate::engine::FIRST_STATE;
use crate::problem::Problem;
use crate::start_error::StartError;
use cvlan_proto::v1::CertificateRequest;
use cvlan_proto::v1::voter_question::Kind;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Certificates are looked at so often; after a failure, sooner.
const RENEW_EVERY: Duration = Duration::from_secs(24 * 3600);
const RENEW_AGAIN: Duration = Duration::from_secs(600);
/// At the start a voter is asked again after this.
const AGAIN: Duration = Duration::from_millis(500);

/// The certificate of the doors under these names, for a start.
pub async fn doors_certificate(app: &App, names: &[String]) -> Result<Arc<CertifiedKey>, StartError> {
    if app.vault.get().is_none()
        && let Some((kept, fresh)) = doors_kept(app, names)?
    {
        if fresh {
            return Ok(kept);
        }
        return Ok(doors_new(app, names).await.unwrap_or(kept));
    }
    let end = Instant::now() + FIRST_STATE;
    loop {
        match doors_new(app, names).await {
            // What this member says of itself may not have reached the voter yet.
            Err(problem) if problem.retry_after.is_some() && Instant::now() < end => sleep(AGAIN).await,
            made => return Ok(made?),
        }
    }
}

/// As it was kept, and whether it is young; `None` where it has ended or is for other names.
fn doors_kept(app: &App, names: &[String]) -> Result<Option<(Arc<CertifiedKey>, bool)>, StartError> {
    let Some((key, pem)) = app.keys.doors()? else { return Ok(None) };
    let Ok(leaf) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return Ok(None) };
    let (Ok(key), Some(read)) = (KeyPair::from_pem(&key), server_read(&leaf)) else { return Ok(None) };
    let now = now_ms();
    if !app.ca.signed(&leaf) || !doors_fit(&read, &key, names, now) {
        return Ok(None);
    }
    Ok(Some((app.ca.chain(leaf, &key)?, now + SERVER_MS / 3 < read.not_after_ms)))
}

/// Whether it is for this key and these names, each however it is written, and good now.
fn doors_fit(read: &Server, key: &KeyPair, names: &[String], now_ms: u64) -> bool {
    let hosts = |names: &[String]| names.iter().map(|name| Host::of(name)).collect::<BTreeSet<_>>();
    let good = (read.not_before_ms..read.not_after_ms).contains(&now_ms);
    good && hosts(&read.names) == hosts(names) && read.key == key.public_key_raw()
}

async fn doors_new(app: &App, names: &[String]) -> Result<Arc<CertifiedKey>, Problem> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Problem::internal)?;
    let leaf = match app.vault.get() {
        Some(secrets) => secrets.signer.server(names, &key, now_ms()).map_err(Problem::internal)?,
        None => {
            let leaf = asked(app, &key, names).await?;
            if !server_read(&leaf).is_some_and(|read| doors_fit(&read, &key, names, now_ms())) {
                return Err(Problem::internal("a voter's certificate is not good now, or not for these doors"));
            }
            app.keys.doors_write(&key.serialize_pem(), &leaf).map_err(Problem::internal)?;
            leaf
        }
    };
    app.ca.chain(leaf, &key).map_err(Problem::internal)
}

/// A voter signs it: for the doors under these names, or, without one, for the member itself.
async fn asked(app: &App, key: &KeyPair, names: &[String]) -> Result<CertificateDer<'static>, Problem> {
    let csr = CertificateParams::default().serialize_request(key).map_err(Problem::internal)?;
    let wanted = CertificateRequest { csr: csr.der().to_vec(), names: names.to_vec() };
    let answer = app.voters.ask(Kind::Certificate(wanted), true).await?;
    let made = CertificateDer::from(answer.certificate);
    if app.ca.signed(&made) { Ok(made) } else { Err(Problem::internal("a voter's certificate is none of this CA's")) }
}

/// Keeps the certificate of the doors and that of the member young.
pub async fn renew(app: Arc<App>, doors: Arc<Live>, names: Vec<String>, own: Arc<Live>) {
    loop {
        let mut next = RENEW_EVERY;
        match own_renewed(&app).await {
            Ok(Some(new)) => own.set(new),
            Ok(None) => {}
            Err(problem) => {
                tracing::error!(detail = %problem.detail, "the member's certificate was not renewed");
                next = RENEW_AGAIN;
            }
        }
        if doors_due(&doors.now(), now_ms()) {
            match doors_new(&app, &names).await {
                Ok(new) => doors.set(new),
                Err(problem) => {
                    tracing::error!(detail = %problem.detail, "the doors' certificate was not renewed");
                    next = RENEW_AGAIN;
                }
            }
        }
        sleep(next).await;
    }
}

/// A third of its life is over; what it was made at, it says itself: it may have been kept over a restart.
fn doors_due(served: &CertifiedKey, now_ms: u64) -> bool {
    let read = served.cert.first().and_then(|leaf| server_read(leaf));
    read.is_none_or(|read| now_ms + SERVER_MS / 3 * 2 >= read.not_after_ms)
}

/// Another one of the member, where it is time.
async fn own_renewed(app: &App) -> Result<Option<Arc<CertifiedKey>>, Problem> {
    let broken = |e: IdentityError| Problem::internal(e);
    let (member, signs) = (app.member.0, app.vault.get().is_some());
    if !due(&app.keys, &app.ca, signs, member, now_ms()).map_err(broken)? {
        return Ok(None);
    }
    if !signs {
        let key = own_key(&app.keys).map_err(broken)?;
        let made = asked(app, &key, &[]).await?;
        // What is there is better than one that nobody takes.
        match fits(&app.ca, &made, member, &key, now_ms()) {
            Fit::Good(_) => {}
            fit @ (Fit::Early | Fit::Ended | Fit::Other) => {
                return Err(Problem::internal(format!("a voter's certificate is not one to keep: {fit:?}")));
            }
        }
        // Keys that came meanwhile have brought a better one.
        if app.vault.get().is_none() {
            certificate_write(&app.keys, &made).map_err(broken)?;
        }
    }
    let secrets = app.vault.get();
    let signer = secrets.as_ref().map(|secrets| &secrets.signer);
    certified(&app.keys, &app.ca, signer, member, now_ms()).map(Some).map_err(broken)
}

impl From<CaError> for Problem {
    fn from(e: CaError) -> Self {
        Self::internal(e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{Ca, Signer, ca_make};

    #[test]
    fn a_doors_certificate_is_as_old_as_it_says() {
        let made = 1_700_000_000_000;
        let (ca_key, ca) = ca_make(made).unwrap();
        let ca = Arc::new(Ca::read(&ca).unwrap());
        let signer = Signer::open(&ca_key, ca.clone()).unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let leaf = signer.server(&["m5.example".to_owned()], &key, made).unwrap();
        let read = server_read(&leaf).unwrap();
        let fits = |names: &[&str], key: &KeyPair, now| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            doors_fit(&read, key, &names, now)
        };
        assert!(fits(&["M5.example."], &key, made) && !fits(&["m5.example", "box"], &key, made));
        assert!(!fits(&["m5.example"], &KeyPair::generate().unwrap(), made));
        assert!(!fits(&["m5.example"], &key, made - 24 * 3_600_000), "of a machine whose clock is ahead");
        assert!(!fits(&["m5.example"], &key, made + SERVER_MS));
        let served = ca.chain(leaf, &key).unwrap();
        let day = 24 * 3600 * 1000;
        assert!(!doors_due(&served, made + 29 * day));
        // Also where it was kept over a restart, and after its end.
        assert!(doors_due(&served, made + 31 * day) && doors_due(&served, made + 91 * day));
    }
}
