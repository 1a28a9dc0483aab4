//! `onceward migrate`: the schema of a store in Postgres, made or brought up to this version.

use onceward::store::postgres::{
    address::{Address, InvalidAddress},
    migrate::{MIGRATIONS, SchemaError, keep_secret, migrate},
};

use super::{Failure, args::MigrateArgs};
use crate::{
    config::{self, Config, Environment, Flags, PostgresStore, secret::InstallSecret},
    opened,
};

impl From<SchemaError> for Failure {
    fn from(error: SchemaError) -> Self {
        Self::not_well(error.to_string())
    }
}

/// Runs it, and says on stdout what it did, or would do.
///
/// # Errors
/// What is wrong with the arguments, or [`SchemaError`].
pub(super) async fn run(args: &MigrateArgs) -> Result<(), Failure> {
    let environment = Environment::of_process();
    let (address, of_config) = target(args, &environment)?;
    let secret = match &args.secret {
        None => None,
        Some(said) if said.expose().is_empty() => Some(of_config.ok_or_else(|| {
            Failure::usage("--secret without a value takes [identity] secret of --config, and there is none")
        })?),
        Some(said) => {
            let text = said.follow(&environment).map_err(|why| Failure::usage(format!("--secret: {why}")))?;
            let secret = InstallSecret::from_base64(text.expose());
            Some(secret.map_err(|why| Failure::usage(format!("--secret {why}")))?)
        }
    };
    let steps = migrate(&address, MIGRATIONS, args.dry_run).await?;
    for step in &steps {
        if args.dry_run {
            println!("-- would apply {:04}_{}\n{}", step.number, step.name, step.sql);
        } else {
            println!("applied {:04}_{}", step.number, step.name);
        }
    }
    if steps.is_empty() {
        println!("the schema is up to date");
    }
    match secret {
        Some(_) if args.dry_run => println!("-- would keep the install secret in onceward.secret"),
        Some(secret) => {
            keep_secret(&address, secret.expose()).await?;
            println!("the install secret is kept in onceward.secret");
        }
        None => {}
    }
    Ok(())
}

/// The database that is named, and the configuration's secret.
fn target(args: &MigrateArgs, environment: &Environment) -> Result<(Address, Option<InstallSecret>), Failure> {
    if let Some(url) = &args.database {
        let url = url.follow(environment).map_err(|why| Failure::usage(format!("--database: {why}")))?;
        let wrong = |error: InvalidAddress| Failure::usage(format!("--database: {error}"));
        let address = match Address::new(url.expose(), None, None) {
            Err(InvalidAddress::NoTls(_)) => {
                let tls = opened::tls(args.ca.as_deref()).map_err(|error| Failure::usage(format!("--ca: {error}")))?;
                Address::new(url.expose(), None, Some(tls))
            }
            other => other,
        };
        return Ok((address.map_err(wrong)?, None));
    }
    let Some(file) = &args.config else {
        return Err(Failure::usage("name the database with --database URL, or a configuration with --config FILE"));
    };
    let config = Config::load(Some(file), &Flags::default(), environment)?;
    let Some((said, section)) = database(&config.store) else {
        return Err(Failure::usage(format!(
            "{}: [store] kind is neither \"postgres\" nor \"tiered\", and there is no [store.fallback]: there is nothing to migrate",
            file.display()
        )));
    };
    let (address, _) = opened::addresses(said, section)?;
    Ok((address, config.identity.secret))
}

/// The database of the records, or of the fallback.
fn database(store: &config::Store) -> Option<(&PostgresStore, &'static str)> {
    let of_records = store.postgres.as_ref().map(|said| (said, "store.postgres"));
    of_records.or(store.fallback.as_ref().map(|said| (said, "store.fallback")))
}
