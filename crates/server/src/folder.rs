//! Small files in the data folder, beside the store's own: of this user only, and written whole or not at all.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::start::StartError;

/// A file's text, or 32 drawn bytes in base64 where it is not there: readable by this user only.
///
/// # Errors
/// [`StartError::Secret`].
pub(crate) fn text_or_drawn(folder: &Path, name: &str) -> Result<String, StartError> {
    let failed = |what: String| StartError::Secret { file: folder.join(name), what };
    match text(folder, name)? {
        Some(text) if text.trim().is_empty() => return Err(failed("is empty".into())),
        Some(text) => return Ok(text.trim().to_owned()),
        None => {}
    }
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| failed(format!("cannot be drawn: {error}")))?;
    let text = STANDARD.encode(bytes);
    write(folder, name, &text)?;
    Ok(text)
}

/// A file's text; `None` where there is no file.
///
/// # Errors
/// [`StartError::Secret`].
pub(crate) fn text(folder: &Path, name: &str) -> Result<Option<String>, StartError> {
    let file = folder.join(name);
    match fs::read_to_string(&file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StartError::Secret { file, what: format!("cannot be read: {error}") }),
    }
}

/// Writes a file of this user's only: a crash between leaves no half of it behind.
///
/// # Errors
/// [`StartError::Secret`].
pub(crate) fn write(folder: &Path, name: &str, text: &str) -> Result<(), StartError> {
    write_whole(folder, name, text)
        .map_err(|error| StartError::Secret { file: folder.join(name), what: format!("cannot be written: {error}") })
}

fn write_whole(folder: &Path, name: &str, text: &str) -> io::Result<()> {
    let draft = folder.join(format!("{name}.new"));
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    let mut out = options.write(true).create_new(true).mode(0o600).open(&draft)?;
    writeln!(out, "{text}")?;
    out.sync_all()?;
    fs::rename(&draft, folder.join(name))?;
    fs::File::open(folder)?.sync_all()
}
