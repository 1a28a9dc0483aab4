//! Where a server lives: its folder, whose it is, and who takes it away.

use std::{
    io::Write as _,
    net::TcpListener,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, bail};

/// The first port that a server may get: below are those of a machine's own servers.
const PORT_MIN: u16 = 10_000;
const PORT_TRIES_MAX: u32 = 100;

/// Who servers run as, where that is not us.
#[derive(Clone, Copy, Debug)]
struct Account {
    uid: u32,
    gid: u32,
}

/// `None` where we are an ordinary user already. Not every server runs as root.
fn account() -> anyhow::Result<Option<Account>> {
    if !rustix::process::getuid().is_root() {
        return Ok(None);
    }
    let accounts = std::fs::read_to_string("/etc/passwd").context("/etc/passwd")?;
    let find = |name: &str| {
        accounts.lines().find_map(|line| {
            let mut fields = line.split(':');
            let is_it = fields.next() == Some(name);
            let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            is_it.then_some(Account { uid, gid })
        })
    };
    match find("postgres").or_else(|| find("nobody")) {
        Some(account) => Ok(Some(account)),
        None => bail!("this server does not run as root, and there is neither an account postgres nor nobody"),
    }
}

/// A temporary folder of a server's account, removed when it is dropped, or when this process is killed.
#[derive(Debug)]
pub(crate) struct Place {
    folder: tempfile::TempDir,
    account: Option<Account>,
    guard: Child,
}

/// Waits for our end. One that was not announced leaves servers behind: they are killed, and the folder removed.
const GUARD: &str = r#"read -r done && exit 0
for file in "$1"/*/postmaster.pid "$1"/*.pid; do
    [ -f "$file" ] && kill -9 "$(head -n 1 "$file")" 2>/dev/null
done
rm -rf "$1""#;

impl Place {
    /// Of an ordinary account, even where we are root.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Self::of(account()?)
    }

    /// Of whoever we are: for programs that only we may reach, and that run as root.
    pub(crate) fn ours() -> anyhow::Result<Self> {
        Self::of(None)
    }

    fn of(account: Option<Account>) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("onceward-servers-").tempdir().context("a temporary folder")?;
        if let Some(Account { uid, gid }) = account {
            std::os::unix::fs::chown(folder.path(), Some(uid), Some(gid)).context("giving the folder away")?;
        }
        let mut guard = Command::new("sh");
        guard.args(["-c", GUARD, "guard"]).arg(folder.path()).process_group(0).current_dir("/");
        guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let guard = guard.spawn().context("sh")?;
        Ok(Self { folder, account, guard })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Runs `program` as the place's account, in this folder and a process group of its own.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.path()).process_group(0).env("LC_ALL", "C").stdin(Stdio::null());
        if let Some(Account { uid, gid }) = self.account {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Writes a file that the place's account alone reads.
    pub(crate) fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let file = self.path().join(name);
        std::fs::write(&file, text).with_context(|| name.to_owned())?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).with_context(|| name.to_owned())?;
        if let Some(Account { uid, gid }) = self.account {
            std::os::unix::fs::chown(&file, Some(uid), Some(gid)).with_context(|| name.to_owned())?;
        }
        Ok(file)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A guard that is gone already guards nothing.
        if let Some(mut announce) = self.guard.stdin.take() {
            let _ = announce.write_all(b"done\n");
        }
        let _ = self.guard.wait();
    }
}

/// Runs `command` to its end and returns what it wrote.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !output.status.success() {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("{}: {}\n{out}{err}", command.get_program().display(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// A port that nobody listens on just now. It is none of those that outgoing connections get: a client that tries a
/// server that is down would meet itself there at times, and the server would find its port taken.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    let outgoing = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let outgoing_from = outgoing.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(0);
    for _ in 0..PORT_TRIES_MAX {
        // Where nearly all are outgoing ones, it is one of them.
        let port = if outgoing_from > 2 * PORT_MIN { fastrand::u16(PORT_MIN..outgoing_from) } else { 0 };
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return Ok(listener.local_addr().context("a free port")?.port());
        }
    }
    bail!("none of {PORT_TRIES_MAX} ports was free")
}

/// A program on the path or where Debian keeps servers, else the package that has it.
pub(crate) fn program(name: &str, package: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    match folders.map(|folder| folder.join(name)).find(|file| file.is_file()) {
        Some(file) => Ok(file),
        None => bail!("{name} is missing; install it first: apt-get install {package}"),
    }
}
