//! Whose a request is: its principal, tenant and environment.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use onceward_core::{
    canonical,
    key::{RecordId, Scope, Secret},
};

use crate::{
    refuse::Problem,
    request::PeerCertificate,
    route::{Part, Principal, PrincipalSource, Route},
};

/// Who asks.
#[derive(Default)]
pub(super) struct Who {
    /// As it counts within a scope.
    pub(super) spelled: String,
    /// Hash of the credential, where its spelling alone proves nothing.
    pub(super) proof: Option<[u8; 16]>,
}

pub(super) fn principal(
    secret: &Secret,
    route: &Route,
    headers: &HeaderMap,
    trusted: bool,
    certificate: Option<&PeerCertificate>,
) -> Result<Who, Problem> {
    match &route.scope.principal {
        Principal::None => Ok(Who { spelled: "anonymous".into(), proof: None }),
        Principal::Auto => auto_principal(secret, headers, certificate),
        Principal::Auth(header) => {
            Err(Problem::NoPrincipal(format!("{header} of the auth check names the caller, and it was not asked")))
        }
        Principal::List(sources) => {
            let mut spelled = Vec::with_capacity(sources.len());
            for source in sources {
                spelled.push(match source {
                    PrincipalSource::Header(name) => {
                        let value = one_value(headers, name, trusted || is_credential(name))?;
                        format!("header {name}:{value}")
                    }
                    PrincipalSource::Cookie(name) => {
                        format!("cookie {name}:{}", cookie(headers, name)?)
                    }
                    PrincipalSource::Mtls => subject(certificate)?.ok_or_else(|| {
                        Problem::NoPrincipal("the connection has no verified client certificate".into())
                    })?,
                });
            }
            Ok(Who { spelled: spelled.join("\n"), proof: None })
        }
    }
}

/// The principal of a request, as it counts within a scope.
pub(crate) fn spelled_principal(
    secret: &Secret,
    route: &Route,
    headers: &HeaderMap,
    trusted: bool,
    certificate: Option<&PeerCertificate>,
) -> Result<String, Problem> {
    principal(secret, route, headers, trusted, certificate).map(|who| who.spelled)
}

/// What of the route counts within a scope: its name, never its pattern; on the fallback, which
/// covers everything, the method and path.
pub(crate) fn scope_route<'r>(route: &'r Route, method: &Method, path: &str) -> Cow<'r, str> {
    if route.is_fallback {
        // Not by format!, which makes room piece by piece.
        return ["default ", method.as_str(), " ", path].concat().into();
    }
    route.name.as_str().into()
}

/// The principal of a caller with this `Authorization`, as it counts within a scope.
pub(crate) fn principal_of(secret: &Secret, authorization: Option<&str>) -> Result<String, String> {
    let mut headers = HeaderMap::new();
    if let Some(value) = authorization {
        let value = HeaderValue::from_str(value).map_err(|_| "the authorization is no header value".to_owned())?;
        headers.insert(header::AUTHORIZATION, value);
    }
    match auto_principal(secret, &headers, None) {
        Ok(who) => Ok(who.spelled),
        Err(Problem::NoPrincipal(why)) => Err(why),
        Err(other) => Err(other.slug().to_owned()),
    }
}

fn auto_principal(secret: &Secret, headers: &HeaderMap, certificate: Option<&PeerCertificate>) -> Result<Who, Problem> {
    const MEND: &str =
        "set scope.principal of the route to what stays the same in a retry, as in principal = [\"header:X-User\"]";
    let opaque = |spelled| Ok(Who { spelled, proof: None });
    let mut credentials = headers.get_all(header::AUTHORIZATION).iter();
    if let Some(value) = credentials.next() {
        if credentials.next().is_some() {
            return Err(Problem::NoPrincipal("Authorization stands on more than one line".into()));
        }
        let value = value.to_str().map_err(|_| Problem::NoPrincipal("Authorization is not visible ASCII".into()))?;
        let (scheme, credential) = value.split_once(' ').unwrap_or((value, ""));
        let credential = credential.trim();
        if scheme.eq_ignore_ascii_case("bearer")
            && let Some(subject) = jwt_subject(credential)
        {
            let proof_scope = Scope { tenant: "", env: "", principal: "token", route: "" };
            let proof = RecordId::derive(secret, &proof_scope, credential);
            return Ok(Who { spelled: format!("jwt:{subject}"), proof: proof.0.first_chunk().copied() });
        }
        if ["basic", "bearer", "apikey", "token"].iter().any(|stable| scheme.eq_ignore_ascii_case(stable)) {
            return opaque(format!("authorization:{value}"));
        }
        return Err(Problem::NoPrincipal(format!(
            "Authorization of the scheme {} may differ in each retry; {MEND}",
            scheme.chars().take(32).collect::<String>()
        )));
    }
    for name in ["x-api-key", "api-key"] {
        let mut lines = headers.get_all(name).iter();
        if let Some(value) = lines.next() {
            if lines.next().is_some() {
                return Err(Problem::NoPrincipal(format!("{name} stands on more than one line")));
            }
            let value = value.to_str().map_err(|_| Problem::NoPrincipal(format!("{name} is not visible ASCII")))?;
            return opaque(format!("{name}:{value}"));
        }
    }
    if let Some(subject) = subject(certificate)? {
        return opaque(subject);
    }
    if headers.contains_key(header::COOKIE) {
        return Err(Problem::NoPrincipal(format!(
            "the request has a cookie and no other credential, and which cookie names the caller is not known; {}",
            MEND.replace("header:X-User", "cookie:session")
        )));
    }
    opaque("anonymous".into())
}

/// The principal by a client's certificate. Certificates without a subject name nobody: were they one principal, the
/// holder of one would be given the answers to another.
fn subject(certificate: Option<&PeerCertificate>) -> Result<Option<String>, Problem> {
    match certificate {
        None => Ok(None),
        Some(PeerCertificate(subject)) if subject.is_empty() => {
            Err(Problem::NoPrincipal("the client certificate has no subject to tell its holder by".into()))
        }
        Some(PeerCertificate(subject)) => Ok(Some(format!("mtls:{subject}"))),
    }
}

/// The canonical JSON of a JWT's `iss`, `sub` and `client_id`, so that a refreshed token stays the
/// same caller. Not verified here: the token's hash, kept in the record, is what protects it.
fn jwt_subject(token: &str) -> Option<String> {
    let mut parts = token.split('.');
    let (_head, claims, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    let claim = |name| claims.get(name).cloned().unwrap_or_default();
    let (iss, sub, client_id) = (claim("iss"), claim("sub"), claim("client_id"));
    if sub.is_null() && client_id.is_null() {
        return None;
    }
    let subject = serde_json::json!({ "client_id": client_id, "iss": iss, "sub": sub });
    canonical::json_text(subject.to_string().as_bytes()).ok()
}

/// Headers that a client itself proves to own: they need no trusted hop.
fn is_credential(name: &HeaderName) -> bool {
    *name == header::AUTHORIZATION || ["x-api-key", "api-key"].contains(&name.as_str())
}

fn one_value<'h>(headers: &'h HeaderMap, name: &HeaderName, trusted: bool) -> Result<&'h str, Problem> {
    let mut lines = headers.get_all(name).iter();
    let Some(value) = lines.next() else {
        return Err(Problem::NoPrincipal(format!("the header {name} is missing")));
    };
    if !trusted {
        return Err(Problem::UntrustedHeader(name.to_string()));
    }
    if lines.next().is_some() {
        return Err(Problem::NoPrincipal(format!("{name} stands on more than one line")));
    }
    match value.to_str() {
        Ok("") => Err(Problem::NoPrincipal(format!("the header {name} is empty"))),
        Ok(value) => Ok(value),
        Err(_) => Err(Problem::NoPrincipal(format!("{name} is not visible ASCII"))),
    }
}

pub(crate) fn scope_part<'r>(part: &'r Part, headers: &'r HeaderMap, trusted: bool) -> Result<Cow<'r, str>, Problem> {
    match part {
        Part::Fixed(value) => Ok(value.as_str().into()),
        Part::Header(name) => one_value(headers, name, trusted).map(Into::into),
    }
}

/// The one value of a cookie. Of two, servers take the first or the last, so that two would be two callers.
fn cookie(headers: &HeaderMap, name: &str) -> Result<String, Problem> {
    let mut values = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(have, _)| *have == name)
        .map(|(_, value)| value);
    match values.next() {
        None | Some("") => Err(Problem::NoPrincipal(format!("the cookie {name} is missing or empty"))),
        Some(value) if values.any(|other| other != value) => {
            Err(Problem::NoPrincipal(format!("the cookie {name} stands there with two values")))
        }
        Some(value) => Ok(value.to_owned()),
    }
}
