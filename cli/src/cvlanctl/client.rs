//! One cluster, asked over HTTPS at one of its controllers with the pinned CA, as the user of a context.
//!
//! ```text
//!  command ─► access token (refreshed where it ends) ─► request, reads with Cvlan-Checkpoint ─► answer or problem
//!                       ▲                                        │
//!                       └──────────── context ◄── the answer's checkpoint, new tokens
//! ```
//! Invariants: nothing is sent to a server whose chain does not lead to the pinned CA; a write has an `Idempotency-Key` of
//! its own, so that it has one effect however often it is sent; where the controller says "later" it is sent again; what a context has seen or written, its later reads see too.

use crate::Global;
use crate::context::{Context, Store};
use crate::failure::Failure;
use crate::print::talk;
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where the API begins.
const BASE: &str = "/api/v1";
const CHECKPOINT: &str = "cvlan-checkpoint";
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The longest answer that is read.
const BODY_MAX: usize = 64 << 20;
/// Things on one page of a list; the controller gives no more.
pub const PAGE_MAX: usize = 1000;
/// Things that one command lists; beyond, filters help.
pub const LIST_MAX: usize = 100_000;
/// An answer must be there within this; `log verify` takes as long as it takes.
const ANSWER_TIME: Duration = Duration::from_secs(60);
/// A connection must be there within this; within less where there are other controllers to ask.
const CONNECT_TIME: Duration = Duration::from_secs(10);
const CONNECT_TIME_OTHERS: Duration = Duration::from_secs(5);
/// A stream that says nothing for so long is dead; before it says the first thing a controller may read its log.
const STREAM_SILENCE: Duration = Duration::from_secs(300);
/// How often a request is repeated where the controller says "later".
const REPEATS: u32 = 3;
/// The longest it waits in between.
const REPEAT_WAIT_S: u64 = 5;
/// An access token that ends sooner is replaced.
const ACCESS_MARGIN_S: u64 = 30;

/// All of a path segment or query value but letters, digits and - . _ ~ @
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'@');
/// What a header's text may not have as it is; not ASCII is always encoded.
const TEXT: &AsciiSet = &CONTROLS.add(b'%');

/// A value as part of a path or query.
pub fn encoded(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// A body and what its headers said.
pub struct Answer {
    /// JSON; null where there was none.
    pub body: Value,
    /// `Cvlan-Complete-From`: the first event that a filtered page knows of.
    pub complete_from: u64,
}

/// A controller and a session with it.
pub struct Client {
    http: reqwest::Client,
    store: Option<(Store, String)>,
    /// Who and where.
    pub context: Context,
    reason: String,
    if_revision: Option<u64>,
    waits: bool,
}

impl Client {
    /// For the context that the command names, or the current one.
    pub fn open(global: &Global) -> Result<Self, Failure> {
        let store = Store::of_environment()?;
        let contexts = store.read()?;
        let name = global.context.clone().unwrap_or_else(|| contexts.current.clone());
        let Some(context) = contexts.contexts.get(&name).cloned() else {
            let log_in = "log in first: cvlanctl login URL --ca-pin sha256:… (cvlan-api prints the line)";
            return Err(match name.as_str() {
                "" => Failure::new("not_logged_in", "there is no context yet").hint(log_in),
                _ => Failure::new("context_not_found", format!("there is no context {name:?}"))
                    .hint("`cvlanctl context list` shows them"),
            });
        };
        let (reason, if_revision) = (global.reason.clone().unwrap_or_default(), global.if_revision);
        Ok(Self { store: Some((store, name)), reason, if_revision, ..Self::at(context)? })
    }

    /// For a context that is not kept yet.
    pub fn at(context: Context) -> Result<Self, Failure> {
        let tls = cvlan_link::tls::client_config(pin_parse(&context.ca_pin)?, None);
        let tls = tls.map_err(|e| Failure::new("tls", e.to_string()))?;
        let connect_time = if context.urls.is_empty() { CONNECT_TIME } else { CONNECT_TIME_OTHERS };
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured((*tls).clone())
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(connect_time)
            .user_agent(concat!("cvlanctl/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| Failure::new("tls", e.to_string()))?;
        Ok(Self { http, store: None, context, reason: String::new(), if_revision: None, waits: false })
    }

    /// With as much time for each answer as it takes.
    pub fn patient(self) -> Self {
        Self { waits: true, ..self }
    }

    /// GET.
    pub async fn get(&mut self, path: &str) -> Result<Value, Failure> {
        Ok(self.read(path).await?.body)
    }

    /// GET, with what its headers say.
    pub async fn read(&mut self, path: &str) -> Result<Answer, Failure> {
        self.send(Method::GET, path, None).await
    }

    /// POST.
    pub async fn post(&mut self, path: &str, body: Option<Value>) -> Result<Value, Failure> {
        Ok(self.send(Method::POST, path, body).await?.body)
    }

    /// PATCH.
    pub async fn patch(&mut self, path: &str, body: Value) -> Result<Value, Failure> {
        Ok(self.send(Method::PATCH, path, Some(body)).await?.body)
    }

    /// DELETE.
    pub async fn delete(&mut self, path: &str) -> Result<(), Failure> {
        self.send(Method::DELETE, path, None).await.map(|_| ())
    }

    /// A list, page by page, at most `limit` things. `path` may have a query already.
    pub async fn list(&mut self, path: &str, limit: usize) -> Result<Vec<Value>, Failure> {
        let (mut items, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = (limit - items.len()).min(PAGE_MAX);
            let sep = if path.contains('?') { '&' } else { '?' };
            let mut url = format!("{path}{sep}limit={page}");
            if !cursor.is_empty() {
                url.push_str(&format!("&cursor={}", encoded(&cursor)));
            }
            let mut body = self.get(&url).await?;
            if let Some(Value::Array(page)) = body.get_mut("items").map(Value::take) {
                items.extend(page);
            }
            cursor = body.get("nextCursor").and_then(Value::as_str).unwrap_or_default().to_owned();
            if cursor.is_empty() || items.len() >= limit {
                if !cursor.is_empty() && limit == LIST_MAX {
                    talk(&format!("warning: these are the first {LIST_MAX}, there are more; narrow it with -q"));
                }
                return Ok(items);
            }
        }
    }

    async fn send(&mut self, method: Method, path: &str, body: Option<Value>) -> Result<Answer, Failure> {
        self.access_ensure().await?;
        let mut key = if method == Method::GET { String::new() } else { key_draw()? };
        let (mut repeats, mut renewed) = (0, false);
        loop {
            let failure = match self.once(&method, path, body.as_ref(), &key).await {
                Err(failure) => failure,
                answer => return answer,
            };
            match failure.code.as_str() {
                // Logged out elsewhere, or the clock is off; nothing was done.
                "session_invalid" if !renewed => self.refresh().await?,
                // A controller that began anew: what is known of the old one is worth nothing.
                "epoch_other" if !renewed => self.remember(|c| c.checkpoint.clear())?,
                // Nothing was done; without a key it is sent once.
                "idempotency_keys_full" if !key.is_empty() => {
                    key.clear();
                    continue;
                }
                // A read, or a write that the key makes one.
                _ if repeats < REPEATS && (method == Method::GET || !key.is_empty()) => {
                    let Some(wait) = failure.retry_after else { return Err(failure) };
                    tokio::time::sleep(Duration::from_secs(wait.clamp(1, REPEAT_WAIT_S))).await;
                    repeats += 1;
                    continue;
                }
                _ => return Err(failure),
            }
            renewed = true;
        }
    }

    /// Sends it, a write under a `key` if it has one, and reads the answer.
    async fn once(&mut self, method: &Method, path: &str, body: Option<&Value>, key: &str) -> Result<Answer, Failure> {
        let ask = |client: &Self| {
            let mut request = client.request(method.clone(), path);
            if !key.is_empty() {
                request = request.header(IDEMPOTENCY_KEY, key);
            }
            if !client.waits {
                request = request.timeout(ANSWER_TIME);
            }
            match body {
                Some(body) => request.json(body),
                None => request,
            }
        };
        let response = self.sent(ask, *method == Method::GET || !key.is_empty(), None).await?;
        self.answer(response).await
    }

    /// Sends it to one controller after the other until one answers; what may have arrived only where it may come `again`.
    /// `within` is for the head of the answer.
    async fn sent(
        &mut self,
        ask: impl Fn(&Self) -> RequestBuilder,
        again: bool,
        within: Option<Duration>,
    ) -> Result<Response, Failure> {
        let mut others = self.context.urls.len();
        loop {
            let sent = tokio::time::timeout(within.unwrap_or(Duration::MAX), ask(self).send()).await;
            let (failure, arrived) = match sent {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => (Failure::unanswered(&self.context.url, &error), !error.is_connect()),
                Err(_) => (Failure::late(&self.context.url), true),
            };
            let silent = matches!(failure.code.as_str(), "unreachable" | "timeout");
            if others == 0 || !silent || arrived && !again {
                return Err(failure);
            }
            others -= 1;
            let away = self.context.url.clone();
            // Another command may have gone elsewhere meanwhile.
            self.remember(|c| {
                if c.url == away {
                    c.elsewhere();
                }
            })?;
            talk(&format!("{away} does not answer; asking {}", self.context.url));
        }
    }

    /// Takes note of where all members are.
    pub fn learn(&mut self, members: &[Value]) -> Result<(), Failure> {
        let urls = members.iter().filter_map(|m| m.get("apiUrls")?.as_array());
        let urls: Vec<String> = urls.flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        self.remember(|c| c.learn(&urls))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let read = method == Method::GET;
        let mut request = self
            .http
            .request(method, format!("{}{BASE}{path}", self.context.url))
            .header(header::ACCEPT, "application/json");
        if !self.context.access_token.is_empty() {
            request = request.bearer_auth(&self.context.access_token);
        }
        if read && !self.context.checkpoint.is_empty() {
            request = request.header(CHECKPOINT, &self.context.checkpoint);
        }
        if !read && !self.reason.is_empty() {
            request = request.header("cvlan-reason", utf8_percent_encode(&self.reason, TEXT).to_string());
        }
        if let Some(revision) = self.if_revision.filter(|_| !read) {
            request = request.header(header::IF_MATCH, format!("\"{revision}\""));
        }
        request
    }

    async fn answer(&mut self, mut response: Response) -> Result<Answer, Failure> {
        let status = response.status();
        let text = |r: &Response, name: &str| r.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (retry_after, checkpoint) = (text(&response, "retry-after"), text(&response, CHECKPOINT));
        let complete_from = text(&response, "cvlan-complete-from").and_then(|v| v.parse().ok()).unwrap_or(1);
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|e| Failure::unanswered(&self.context.url, &e))? {
            body.extend_from_slice(&piece);
            if body.len() > BODY_MAX {
                return Err(Failure::new("answer_too_large", format!("the answer is longer than {BODY_MAX} bytes"))
                    .hint("ask for less, with --limit"));
            }
        }
        if !status.is_success() {
            let retry_after = retry_after.and_then(|v| v.parse().ok());
            return Err(Failure::answered(&self.context.url, status, &body, retry_after));
        }
        if let Some(checkpoint) = checkpoint {
            self.remember(|c| c.seen(&checkpoint))?;
        }
        let body = match body.as_slice() {
            [] => Value::Null,
            body => {
                serde_json::from_slice(body).map_err(|_| Failure::answered(&self.context.url, status, b"", None))?
            }
        };
        Ok(Answer { body, complete_from })
    }

    /// Logs in, and keeps the session.
    pub async fn login(&mut self, name: &str, password: &str, tenant: &str) -> Result<Value, Failure> {
        self.context.forget_session();
        let body = json!({"name": name, "password": password, "tenant": tenant});
        let body = self.once(&Method::POST, "/auth/login", Some(&body), "").await?.body;
        self.session_keep(&body)?;
        Ok(body)
    }

    async fn access_ensure(&mut self) -> Result<(), Failure> {
        if self.context.refresh_token.is_empty() {
            let name = self.store.as_ref().map_or("", |(_, name)| name.as_str());
            return Err(Failure::new("not_logged_in", format!("context {name:?} is logged out")).hint("cvlanctl login"));
        }
        if self.context.access_expires_s > now_s() + ACCESS_MARGIN_S {
            return Ok(());
        }
        self.refresh().await
    }

    /// A new access token for the refresh token.
    pub async fn refresh(&mut self) -> Result<(), Failure> {
        self.context.access_token.clear();
        let body = json!({"refreshToken": self.context.refresh_token});
        let body = self.once(&Method::POST, "/auth/refresh", Some(&body), "").await?.body;
        self.session_keep(&body)
    }

    fn session_keep(&mut self, body: &Value) -> Result<(), Failure> {
        let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let life_s = text("expiresInSeconds").parse::<u64>().unwrap_or_default();
        let (access, refresh, expires_s) = (text("accessToken"), text("refreshToken"), now_s() + life_s);
        if access.is_empty() || refresh.is_empty() {
            return Err(Failure::answered(&self.context.url, StatusCode::OK, b"", None));
        }
        self.remember(|c| {
            (c.access_token, c.refresh_token, c.access_expires_s) = (access.clone(), refresh.clone(), expires_s);
        })
    }

    /// Ends the session, there and here.
    pub async fn logout(&mut self) -> Result<(), Failure> {
        if !self.context.refresh_token.is_empty() {
            let body = json!({"refreshToken": self.context.refresh_token});
            match self.once(&Method::POST, "/auth/logout", Some(&body), "").await {
                Err(failure) if failure.code != "session_invalid" => return Err(failure),
                Ok(_) | Err(_) => {}
            }
        }
        self.remember(Context::forget_session)
    }

    /// Changes the context, and the file where that makes a difference.
    pub fn remember(&mut self, change: impl Fn(&mut Context)) -> Result<(), Failure> {
        let before = self.context.clone();
        change(&mut self.context);
        let Some((store, name)) = self.store.as_ref().filter(|_| before != self.context) else { return Ok(()) };
        store.change(|contexts| {
            // Deleted meanwhile, it stays deleted.
            if let Some(kept) = contexts.contexts.get_mut(name) {
                change(kept);
            }
            Ok(())
        })
    }

    /// A stream of server-sent events, read piece by piece; `None` = it ended.
    pub async fn follow(&mut self, path: &str) -> Result<Response, Failure> {
        self.stream(path, "text/event-stream").await
    }

    /// An answer that is read piece by piece.
    pub async fn stream(&mut self, path: &str, accept: &str) -> Result<Response, Failure> {
        self.access_ensure().await?;
        let ask = |client: &Self| {
            let request = client.http.get(format!("{}{BASE}{path}", client.context.url));
            request.header(header::ACCEPT, accept).bearer_auth(&client.context.access_token)
        };
        let mut response = self.sent(ask, true, Some(STREAM_SILENCE)).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.refresh().await?;
            response = self.sent(ask, true, Some(STREAM_SILENCE)).await?;
        }
        if response.status().is_success() {
            return Ok(response);
        }
        match self.answer(response).await {
            Err(failure) => Err(failure),
            Ok(_) => Err(Failure::answered(&self.context.url, StatusCode::OK, b"", None)),
        }
    }

    /// The path of the tenant that the command is about.
    pub fn tenant_path(&self, global: &Global) -> Result<String, Failure> {
        match self.tenant(global) {
            "" => Err(Failure::usage("which tenant? name it with -t TENANT")
                .hint("`cvlanctl context tenant TENANT` makes one the default; `cvlanctl tenant list` shows them")),
            tenant => Ok(format!("/tenants/{}", segment(tenant)?)),
        }
    }

    /// -t, else the context's; empty = none.
    pub fn tenant<'a>(&'a self, global: &'a Global) -> &'a str {
        global.tenant.as_deref().unwrap_or(&self.context.tenant)
    }
}

/// The next piece of a stream, or why there is none.
pub async fn piece(stream: &mut Response) -> Result<Option<impl AsRef<[u8]> + use<>>, String> {
    match tokio::time::timeout(STREAM_SILENCE, stream.chunk()).await {
        Ok(piece) => piece.map_err(|e| e.to_string()),
        Err(_) => Err(format!("nothing came for {} s", STREAM_SILENCE.as_secs())),
    }
}

/// The answer that had the secret was lost, and a controller shows it once.
pub fn secret_lost(delete: &str, made: Option<&Value>) -> Failure {
    let id = made.and_then(|made| made.get("id")).map(|id| id.as_str().map_or_else(|| id.to_string(), str::to_owned));
    Failure::new("secret_lost", "it was made, but the answer with its secret was lost, and it is shown once")
        .hint(format!("{delete} {} --yes, then make another one", id.unwrap_or_default()))
}

/// A random `Idempotency-Key`.
fn key_draw() -> Result<String, Failure> {
    let mut key = [0; 16];
    getrandom::fill(&mut key).map_err(|e| Failure::new("random", format!("the system gives no random bytes: {e}")))?;
    Ok(hex::encode(key))
}

/// A name as a path segment; `.` and `..` would lead elsewhere.
pub fn segment(name: &str) -> Result<String, Failure> {
    match name {
        "" | "." | ".." => Err(Failure::usage(format!("{name:?} is no name"))),
        name => Ok(encoded(name)),
    }
}

/// sha256:HEX.
pub fn pin_parse(text: &str) -> Result<[u8; 32], Failure> {
    let mut pin = [0; 32];
    let hex = text.strip_prefix("sha256:").unwrap_or_default();
    hex::decode_to_slice(hex, &mut pin).map_err(|_| {
        Failure::usage(format!("{text:?} is no pin: it is sha256: and 64 hex digits"))
            .hint("cvlan-api prints it when it starts, in the line `log in with`")
    })?;
    Ok(pin)
}

/// Seconds since 1970.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_elsewhere_is_no_name() {
        for (name, wanted) in [
            ("web-1", Some("web-1")),
            ("a b/c", Some("a%20b%2Fc")),
            ("..", None),
            (".", None),
            ("", None),
            ("?x", Some("%3Fx")),
        ] {
            assert_eq!(segment(name).ok().as_deref(), wanted, "{name}");
        }
    }

    #[test]
    fn a_pin_is_sha256_and_64_hex_digits() {
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(pin_parse(&good).unwrap(), [10; 32]);
        for bad in ["", "sha256:", "0a", &good[7..], &good[..70], &format!("{good}00"), &good.replace('0', "g")] {
            assert_eq!(pin_parse(bad).unwrap_err().exit, crate::failure::USAGE, "{bad}");
        }
    }
}
