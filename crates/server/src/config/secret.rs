//! Secrets: given as `env:NAME`, `file:PATH` or, where nothing better is at hand, as themselves.

use std::{fmt, io::Read as _};

use base64::Engine as _;

use super::{Inputs, Secrets, overlay::Environment};

/// A secret text. Never shown: `Debug` hides it and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `value` from being shown.
    #[must_use]
    pub fn new(value: String) -> Self {
        Self(value)
    }

    /// What `env:NAME` or `file:PATH` points to; any other secret is itself. For those given as an
    /// argument: those in the file have been followed when it was read.
    ///
    /// # Errors
    ///
    /// Why it cannot be read, or that it is empty.
    pub fn follow(&self, environment: &Environment) -> Result<Self, String> {
        resolve(&self.0, environment).map(Self)
    }

    /// The secret itself. Only for comparing and deriving, never for output.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// The install secret: 32 bytes that record ids and fingerprints are keyed with. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct InstallSecret([u8; 32]);

impl InstallSecret {
    /// Keeps `bytes` from being shown.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads 32 bytes of base64, either alphabet, with or without padding.
    ///
    /// # Errors
    ///
    /// What is wrong, without any of the secret.
    pub fn from_base64(text: &str) -> Result<Self, String> {
        use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
        let bare = text.trim_end_matches('=');
        let bytes = STANDARD_NO_PAD
            .decode(bare)
            .or_else(|_| URL_SAFE_NO_PAD.decode(bare))
            .map_err(|_| "is not base64: draw one with `head -c 32 /dev/urandom | base64`".to_owned())?;
        let count = bytes.len();
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| format!("holds {count} bytes, must hold 32: draw one with `head -c 32 /dev/urandom | base64`"))
    }

    /// The bytes themselves. Only for keying hashes, never for output.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for InstallSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InstallSecret(hidden)")
    }
}

/// Why a secret of the file is not known.
pub(super) struct Unfollowed {
    pub(super) why: String,
    /// What it points to may be missing here only, where secrets are not needed.
    pub(super) may_be_elsewhere: bool,
}

/// A secret's text, from where the file says it is.
pub(super) fn followed(text: &str, inputs: &Inputs<'_>) -> Result<String, Unfollowed> {
    resolve(text, inputs.environment).map_err(|why| {
        // A literal is wrong anywhere.
        let points = text.starts_with("env:") || text.starts_with("file:");
        Unfollowed { why, may_be_elsewhere: points && inputs.secrets == Secrets::Absent }
    })
}

/// Follows `env:NAME` and `file:PATH`; any other text is the secret itself. One line break at the
/// end of a file is not part of it. A relative path starts at the working directory.
pub(super) fn resolve(text: &str, environment: &Environment) -> Result<String, String> {
    const BYTES_MAX: u64 = 4096;
    let value = if let Some(name) = text.strip_prefix("env:") {
        environment
            .get(name)
            .ok_or_else(|| format!("the environment variable {name:?} is not set, or is not UTF-8"))?
            .to_owned()
    } else if let Some(path) = text.strip_prefix("file:") {
        let cannot = |source: std::io::Error| format!("the file {path:?} cannot be read: {source}");
        // Opening a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(cannot)?.is_file() {
            return Err(format!("{path:?} is not a file"));
        }
        let mut value = String::new();
        let file = std::fs::File::open(path).map_err(cannot)?;
        file.take(BYTES_MAX + 1).read_to_string(&mut value).map_err(cannot)?;
        if value.len() as u64 > BYTES_MAX {
            return Err(format!("the file {path:?} is longer than {BYTES_MAX} bytes"));
        }
        let end = value.strip_suffix('\n').map_or(value.len(), |v| v.strip_suffix('\r').unwrap_or(v).len());
        value.truncate(end);
        value
    } else {
        text.to_owned()
    };
    if value.is_empty() { Err("is empty".to_owned()) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::new("hunter2".to_owned());
        let install = InstallSecret::from_base64("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap();
        assert_eq!(format!("{secret:?} {install:?}"), "Secret(hidden) InstallSecret(hidden)");
        assert_eq!((secret.expose(), install.expose()[31]), ("hunter2", 31));
    }

    #[test]
    fn a_wrong_install_secret_says_why_without_showing_it() {
        let message = InstallSecret::from_base64("c2hvcnQ=").unwrap_err();
        assert_eq!(message, "holds 5 bytes, must hold 32: draw one with `head -c 32 /dev/urandom | base64`");
        assert!(!InstallSecret::from_base64("not base64!").unwrap_err().contains("not base64!"));
    }

    #[test]
    fn a_secret_comes_from_a_variable_a_file_or_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "from file\r\n").unwrap();
        let environment = Environment::from_pairs([("TOKEN", "from env")]);
        let at = |text: &str| resolve(text, &environment);
        assert_eq!(at("env:TOKEN").unwrap(), "from env");
        assert_eq!(at(&format!("file:{}", path.display())).unwrap(), "from file");
        assert_eq!(at("itself").unwrap(), "itself");
        assert_eq!(at("env:OTHER").unwrap_err(), r#"the environment variable "OTHER" is not set, or is not UTF-8"#);
        assert!(at(&format!("file:{}", folder.path().display())).unwrap_err().ends_with("is not a file"));
        std::fs::write(&path, vec![b'x'; 5000]).unwrap();
        assert!(at(&format!("file:{}", path.display())).unwrap_err().ends_with("longer than 4096 bytes"));
    }
}
