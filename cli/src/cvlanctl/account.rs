//! Oneself: login, logout, password.

use crate::Global;
use crate::client::{Client, pin_parse};
use crate::context::{Context, Store};
use crate::failure::Failure;
use crate::print::{self, talk, text};
use crate::prompt;
use clap::Args;
use serde_json::{Value, json};

/// `cvlanctl login`
#[derive(Args)]
#[command(after_help = "\
Examples:
  cvlanctl login https://127.0.0.1:8443 --ca-pin sha256:…    as admin; cvlan-api prints this line
  cvlanctl login https://c.example:8443 --ca-pin sha256:… -t acme --name ada
  cvlanctl login                                             again, into the current context
  cvlanctl login --password-stdin < password.txt             or with CVLAN_PASSWORD set

The pin is the SHA-256 of the CA's key. It is checked at every connection; there is no way without.")]
pub struct Login {
    /// https://HOST:PORT of the controller; none = the context's
    url: Option<String>,
    /// sha256:HEX of the controller's CA key
    #[arg(long, value_name = "sha256:HEX")]
    ca_pin: Option<String>,
    /// Your login name [default: the context's, else admin]
    #[arg(long)]
    name: Option<String>,
    /// Read the password from stdin, one line
    #[arg(long)]
    password_stdin: bool,
}

impl Login {
    /// Logs in and makes the context the current one.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let store = Store::of_environment()?;
        let contexts = store.read()?;
        let url = self.url.as_deref().map(url_check).transpose()?;
        let asked = match (&global.context, &url) {
            (Some(name), _) => name.clone(),
            (None, Some(url)) => context_name(url, global.tenant.as_deref().unwrap_or_default()),
            (None, None) => contexts.current.clone(),
        };
        let known = contexts.contexts.get(&asked).cloned();
        let again = known.clone().unwrap_or_default();
        let Some(url) = url.or_else(|| known.as_ref().map(|k| k.url.clone())) else {
            let which = global.again("which controller? cvlanctl login https://HOST:8443 --ca-pin sha256:…");
            return Err(Failure::usage(which).hint("cvlan-api prints the line when it starts"));
        };
        let same = url == again.url || again.urls.contains(&url);
        let Some(pin) = self.ca_pin.clone().or_else(|| Some(again.ca_pin.clone()).filter(|p| same && !p.is_empty()))
        else {
            return Err(Failure::usage("the first login to a controller needs its --ca-pin sha256:…")
                .hint("cvlan-api prints it when it starts: there is no trust on first use"));
        };
        pin_parse(&pin)?;
        let kept = |text: &str| Some(text.to_owned()).filter(|t| same && !t.is_empty());
        let user = self.name.clone().or_else(|| kept(&again.user)).unwrap_or_else(|| "admin".to_owned());
        let home = global.tenant.clone().or_else(|| kept(&again.home)).unwrap_or_default();

        let password = self.password(&user).await?;
        // The cluster's other controllers, where this is about the same one.
        let others = [again.url].into_iter().chain(again.urls).filter(|other| *other != url);
        let urls = if same && pin == again.ca_pin { others.collect() } else { Vec::new() };
        let fresh = Context { url, urls, ca_pin: pin, user: user.clone(), home: home.clone(), ..Context::default() };
        let mut client = Client::at(fresh)?;
        let answer = client.login(&user, &password, &home).await?;
        if home.is_empty() {
            // Where the other controllers are; not everybody may see it.
            let cluster = client.get("/cluster").await.unwrap_or_default();
            client.learn(&[cluster])?;
        }
        let mut context = client.context;
        context.tenant = if home.is_empty() { kept(&again.tenant).unwrap_or_default() } else { home };
        let (role, url) = (answer.get("user").map(|u| text(u, "role")).unwrap_or_default(), context.url.clone());
        store.change(|contexts| {
            contexts.contexts.insert(asked.clone(), context);
            contexts.current.clone_from(&asked);
            Ok(())
        })?;
        talk(&format!("logged in to {url} as {user} ({role}); context {asked:?} is the current one"));
        Ok(())
    }

    async fn password(&self, user: &str) -> Result<String, Failure> {
        if self.password_stdin {
            let [password] = prompt::stdin_lines()?;
            return Ok(password);
        }
        match std::env::var("CVLAN_PASSWORD") {
            Ok(password) if !password.is_empty() => Ok(password),
            Ok(_) | Err(_) => prompt::password(&format!("Password of {user}")).await,
        }
    }
}

/// https://HOST[:PORT], without a path.
fn url_check(text: &str) -> Result<String, Failure> {
    let wrong =
        |why: &str| Err(Failure::usage(format!("{text:?} is no controller's URL: {why}")).hint("https://HOST:8443"));
    let url = text.trim_end_matches('/');
    let Some(authority) = url.strip_prefix("https://") else { return wrong("it starts with https://") };
    if authority.is_empty() || authority.contains(['/', '?', '#', '@', ' ']) {
        return wrong("it is a host and a port, nothing else");
    }
    match reqwest::Url::parse(url) {
        Ok(parsed) if parsed.has_host() => Ok(url.to_owned()),
        Ok(_) => wrong("it has no host"),
        Err(e) => wrong(&e.to_string()),
    }
}

fn context_name(url: &str, tenant: &str) -> String {
    let host = url.strip_prefix("https://").unwrap_or(url);
    if tenant.is_empty() { host.to_owned() } else { format!("{tenant}@{host}") }
}

/// `cvlanctl logout`
pub async fn logout(global: &Global) -> Result<(), Failure> {
    let mut client = Client::open(global)?;
    client.logout().await?;
    talk(&format!("logged out of {}; {}", client.context.url, global.again("`cvlanctl login` logs in again")));
    Ok(())
}

/// `cvlanctl passwd`
#[derive(Args)]
#[command(after_help = "All your sessions end with it; this context gets a new one.")]
pub struct Passwd {
    /// Read two lines from stdin: the old password, the new one
    #[arg(long)]
    password_stdin: bool,
}

impl Passwd {
    /// Another password for oneself, and a new session.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut client = Client::open(global)?;
        let me: Value = client.get("/me").await?;
        let user = text(&me, "name");
        let (old, new) = if self.password_stdin {
            let [old, new] = prompt::stdin_lines()?;
            (old, new)
        } else {
            (prompt::password(&format!("Old password of {user}")).await?, prompt::password_new(&user).await?)
        };
        client.post("/me/password", Some(json!({"oldPassword": old, "newPassword": new}))).await?;
        let home = client.context.home.clone();
        client.login(&user, &new, &home).await?;
        talk(&format!("the password of {} is changed; all other sessions have ended", print::plain(&user)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_https_host_and_port() {
        for (text, wanted) in [
            ("https://127.0.0.1:8443", Some("https://127.0.0.1:8443")),
            ("https://c.example/", Some("https://c.example")),
            ("https://[::1]:8443", Some("https://[::1]:8443")),
            ("http://c.example", None),
            ("c.example:8443", None),
            ("https://", None),
            ("https://c/x", None),
            ("https://u@c", None),
            ("https://c:99999", None),
        ] {
            assert_eq!(url_check(text).ok().as_deref(), wanted, "{text}");
        }
    }

    #[test]
    fn a_context_is_named_after_where_and_whose() {
        assert_eq!(context_name("https://c:8443", ""), "c:8443");
        assert_eq!(context_name("https://c:8443", "acme"), "acme@c:8443");
    }
}
