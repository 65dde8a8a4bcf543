//! The web UI: files built by `make ui`, embedded. Nothing is loaded from elsewhere: it works air-gapped.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, Method, StatusCode, header};
use rust_embed::RustEmbed;
use std::borrow::Cow;

#[derive(RustEmbed)]
#[folder = "../../ui/dist"]
struct Files;

/// What the page may do: run and load what comes from here, talk to here, nothing else.
pub const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

const NOT_BUILT: &str = "The web UI is not built into this binary: `make ui` builds it. The API is at /api/v1.\n";

/// A file of the UI, or its page.
pub fn serve(method: &Method, path: &str) -> Response {
    let mut response = match *method {
        Method::GET | Method::HEAD => file(path.trim_start_matches('/')),
        _ => text(StatusCode::METHOD_NOT_ALLOWED, "The UI takes GET; the API is at /api/v1.\n"),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::STRICT_TRANSPORT_SECURITY, "max-age=31536000"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn file(path: &str) -> Response {
    let path = if path.is_empty() { "index.html" } else { path };
    let (path, found) = match Files::get(path) {
        Some(found) => (path, found),
        // Names with a dot are files; any other path is a place in the page.
        None if path.rsplit('/').next().is_some_and(|name| name.contains('.')) && path != "index.html" => {
            return text(StatusCode::NOT_FOUND, "There is no such file.\n");
        }
        None => match Files::get("index.html") {
            Some(page) => ("index.html", page),
            None => return text(StatusCode::OK, NOT_BUILT),
        },
    };
    let body = match found.data {
        Cow::Borrowed(data) => Body::from(bytes::Bytes::from_static(data)),
        Cow::Owned(data) => Body::from(data),
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind(path)));
    // Files below assets/ have their content's hash in their name.
    let cache = if path.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-cache" };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    response
}

fn text(status: StatusCode, text: &'static str) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn kind(path: &str) -> &'static str {
    match path.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "json" | "webmanifest" => "application/json",
        "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_the_policy() {
        for (method, path, status) in [
            (Method::GET, "/", 200),
            (Method::GET, "/tenants/acme", 200),
            (Method::GET, "/assets/none.js", 404),
            (Method::GET, "/../../etc/passwd.txt", 404),
            (Method::POST, "/", 405),
        ] {
            let response = serve(&method, path);
            assert_eq!(response.status().as_u16(), status, "{method} {path}");
            assert_eq!(response.headers()[header::CONTENT_SECURITY_POLICY], POLICY);
        }
    }
}
