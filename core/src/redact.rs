//! Events without their secrets, as people and files may have them.

use cvlan_proto::v1::{
    Event, Sealed, event::Body, member_event as member, system_event as system, tenant_event as tenant,
    user_event as user,
};

/// What stands where a secret's hash was.
const REDACTED: &str = "redacted";

/// Takes every secret out, and every hash that could be guessed against; true where this is an event that has one.
pub fn redact(event: &mut Event) -> bool {
    let seal = |sealed: &mut Option<Sealed>| {
        if let Some(sealed) = sealed {
            sealed.ciphertext.clear();
            sealed.nonce.clear();
        }
    };
    let hide = |hash: &mut String| {
        REDACTED.clone_into(hash);
        true
    };
    match &mut event.body {
        Some(Body::System(e)) => match &mut e.kind {
            Some(system::Kind::Bootstrapped(b)) => {
                seal(&mut b.challenge_key);
                if let Some(key) = &mut b.jwt_key {
                    seal(&mut key.secret);
                }
                true
            }
            Some(
                system::Kind::CheckpointOpened(_)
                | system::Kind::Checkpointed(_)
                | system::Kind::AdvertisementChanged(_)
                | system::Kind::EpochBegun(_)
                | system::Kind::HistoryTrimmed(_)
                | system::Kind::FeatureLevelRaised(_),
            )
            | None => false,
        },
        Some(Body::Tenant(e)) => match &mut e.kind {
            Some(tenant::Kind::Created(c)) => {
                seal(&mut c.signing_seed);
                true
            }
            Some(tenant::Kind::Updated(_) | tenant::Kind::Deleted(_)) | None => false,
        },
        Some(Body::User(e)) => match &mut e.kind {
            Some(user::Kind::Created(c)) => hide(&mut c.password_hash),
            Some(user::Kind::PasswordChanged(c)) => hide(&mut c.password_hash),
            Some(user::Kind::Deleted(_)) | None => false,
        },
        Some(Body::Member(e)) => match &mut e.kind {
            Some(member::Kind::Admitted(a)) => {
                a.secret_hash.clear();
                true
            }
            Some(member::Kind::Joined(_) | member::Kind::Removed(_)) | None => false,
        },
        Some(Body::Cvlan(_) | Body::Node(_) | Body::Token(_) | Body::Presence(_)) | None => false,
    }
}
