//! Certificate files: that they are there and go together, at the place of the key that names them.

use std::path::PathBuf;

use http::Uri;

use super::{
    Inputs, Secrets,
    problem::{Origin, Problems},
    read::Layers,
    units::shown,
};
use crate::proxy::{CertAndKey, ClientAuth, ClientTls, ListenerTls, ServerTls, TlsError, UpstreamTls};

/// `listen.tls`, where it is said and whole.
pub(super) fn listener(listen: Layers<'_>, inputs: &Inputs<'_>, problems: &mut Problems<'_>) -> Option<ListenerTls> {
    let whose = r#""tls" in [listen]"#;
    let table = listen.node("tls").map(|_| listen.sub("tls"))?;
    let here = listen.at("tls").unwrap_or(&Origin::Whole);
    let choices = [("off", ClientAuth::Off), ("optional", ClientAuth::Optional), ("required", ClientAuth::Required)];
    let client_auth = table.choice("client_auth", &choices, ClientAuth::Off);
    let client_ca = path(table, "client_ca");
    if client_auth != ClientAuth::Off && client_ca.is_none() {
        let why = format!(
            r#"{whose}: "client_auth" asks clients for a certificate, and nothing says whose count: add client_ca = "clients.pem""#
        );
        problems.error(table.at("client_auth").unwrap_or(here), why);
        return None;
    }
    if client_ca.is_some() && table.node("client_auth").is_none() {
        let why = format!(
            r#"{whose}: "client_ca" counts only where clients are asked: add client_auth = "optional", or "required""#
        );
        problems.error(table.at("client_ca").unwrap_or(here), why);
        return None;
    }
    let CertAndKey { cert, key } = pair(table, whose, here, problems)?;
    let said = ListenerTls { cert, key, client_ca, client_auth };
    tell(ServerTls::check(&said), table, whose, here, inputs, problems);
    Some(said)
}

/// `ca` and `client_cert` of an upstream.
pub(super) fn upstream(
    table: Layers<'_>,
    name: &str,
    url: &Uri,
    inputs: &Inputs<'_>,
    problems: &mut Problems<'_>,
) -> UpstreamTls {
    let whose = format!("[[upstream]] {}", shown(name));
    if url.scheme_str() != Some("https") {
        for key in ["ca", "client_cert"] {
            if let Some(at) = table.at(key) {
                let why =
                    format!(r#"{key:?} in {whose} counts only for an "https://" URL, and this one is not encrypted"#);
                problems.error(at, why);
            }
        }
        return UpstreamTls::default();
    }
    let own = table.sub("client_cert");
    let here = table.at("client_cert").or_else(|| table.at("ca")).unwrap_or(&Origin::Whole);
    let client_cert = match table.node("client_cert") {
        Some(_) => pair(own, &format!(r#""client_cert" of {whose}"#), here, problems),
        None => None,
    };
    let said = UpstreamTls { ca: path(table, "ca"), client_cert };
    let (errors, warning) = ClientTls::check(&said);
    let (of_ca, of_own): (Vec<_>, Vec<_>) = errors.into_iter().partition(|error| error.key == "ca");
    tell((of_ca, None), table, &whose, here, inputs, problems);
    tell((of_own, warning), own, &format!(r#""client_cert" of {whose}"#), here, inputs, problems);
    said
}

fn path(table: Layers<'_>, key: &str) -> Option<PathBuf> {
    table.text(key).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// A certificate and its key, which go together.
pub(super) fn pair(table: Layers<'_>, whose: &str, here: &Origin, problems: &mut Problems<'_>) -> Option<CertAndKey> {
    let (cert, key) = (path(table, "cert"), path(table, "key"));
    for (name, said) in [("cert", &cert), ("key", &key)] {
        if said.is_none() && table.node(name).is_none() {
            problems.error(here, format!(r#"{whose} lacks {name:?}: a certificate and its key go together"#));
        }
    }
    Some(CertAndKey { cert: cert?, key: key? })
}

/// Tells what is wrong with files, each at the key that names it.
fn tell(
    (errors, warning): (Vec<TlsError>, Option<TlsError>),
    table: Layers<'_>,
    whose: &str,
    here: &Origin,
    inputs: &Inputs<'_>,
    problems: &mut Problems<'_>,
) {
    for error in errors {
        let at = table.at(error.key).unwrap_or(here);
        let message = format!("{:?} of {whose}: {error}", error.key);
        // What it points to may be missing here only, as a secret may.
        if error.is_absent && inputs.secrets == Secrets::Absent {
            problems.warn(at, message);
        } else {
            problems.error(at, message);
        }
    }
    if let Some(warning) = warning {
        problems.warn(table.at(warning.key).unwrap_or(here), format!("{:?} of {whose}: {warning}", warning.key));
    }
}
