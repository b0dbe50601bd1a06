//! `oarlock keys`: who may use a server.

use std::io::{self, Write as _};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::bail;
use clap::{Args, Subcommand};
use oarlock_access::{AccessError, KeyRecord, KeysFile, Limits, NewKey, Timestamp};
use oarlock_types::Priority;
use serde_json::{Value, json};

/// Options of `oarlock keys`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    oarlock keys add --keys keys.toml --tenant research --name 'night jobs' --max-parallel 8\n  \
    oarlock serve --model demo --keys keys.toml\n  \
    curl http://127.0.0.1:8000/v1/models -H 'authorization: Bearer oar_…'\n  \
    oarlock keys list --keys keys.toml\n  \
    oarlock keys revoke --keys keys.toml k_5d0c41e2a9b7\n\n\
    The file holds hashes, so a lost secret cannot be shown again: add another key and revoke the\n\
    old one. A running server notices a change within a second or two. Once the file has a key,\n\
    every request needs one, except for /health and /ready; revoking the last one keeps the server\n\
    closed.")]
pub(crate) struct KeysArguments {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Add a key and print its secret, this once. The file is made if there is none.
    Add(AddArguments),
    /// Show all keys; secrets are not known.
    List(ListArguments),
    /// Refuse a key from now on. Requests that are running finish.
    Revoke(RevokeArguments),
}

/// The file.
#[derive(Debug, Args)]
struct FileArgument {
    /// The keys file, as `oarlock serve --keys` reads it.
    #[arg(long = "keys", env = "OARLOCK_KEYS", value_name = "FILE")]
    path: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    KEY=$(oarlock keys add --keys keys.toml --tenant research)\n  \
    oarlock keys add --keys keys.toml --tenant batch --priority 200 --tokens-per-minute 100000 --expires 90d\n\n\
    The secret goes to standard output, everything else to standard error.")]
struct AddArguments {
    #[command(flatten)]
    file: FileArgument,
    /// Whose requests these will be. Keys of one tenant share its fair share of the server and its
    /// prefix cache; different tenants share neither.
    #[arg(long, value_name = "NAME")]
    tenant: String,
    /// Who or what uses the key, for people.
    #[arg(long, value_name = "TEXT", default_value = "")]
    name: String,
    /// Scheduling class: 0 goes first, 255 last. Requests may lower it, not raise it.
    #[arg(long, value_name = "N", default_value_t = Priority::default().0)]
    priority: u8,
    /// Requests per minute at most; more are answered 429 with a Retry-After. [default: no limit]
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<NonZeroU32>,
    /// Tokens per minute at most, of prompts and answers together. [default: no limit]
    #[arg(long, value_name = "N")]
    tokens_per_minute: Option<NonZeroU32>,
    /// Requests at the same time at most. [default: no limit]
    #[arg(long, value_name = "N")]
    max_parallel: Option<NonZeroU32>,
    /// When the key ends: after a while (12h, 90d) or at a time in UTC (2027-01-31,
    /// 2027-01-31T12:00:00Z). [default: never]
    #[arg(long, value_name = "WHEN", value_parser = parse_expiry)]
    expires: Option<Timestamp>,
}

#[derive(Debug, Args)]
struct ListArguments {
    #[command(flatten)]
    file: FileArgument,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RevokeArguments {
    #[command(flatten)]
    file: FileArgument,
    /// The key's id, as `list` shows it.
    #[arg(value_name = "ID")]
    id: String,
}

/// Changes or shows a keys file.
pub(crate) fn run(arguments: KeysArguments) -> anyhow::Result<()> {
    match arguments.command {
        KeysCommand::Add(arguments) => add(arguments),
        KeysCommand::List(arguments) => list(&arguments),
        KeysCommand::Revoke(arguments) => revoke(&arguments),
    }
}

fn parse_expiry(text: &str) -> Result<Timestamp, String> {
    let now = SystemTime::now();
    let time = match humantime::parse_duration(text) {
        Ok(duration) => now.checked_add(duration).map(Timestamp::from_time),
        Err(_) => Some(Timestamp::parse(text).map_err(
            |_| "write a while (12h, 90d) or a time in UTC (2027-01-31, 2027-01-31T12:00:00Z)",
        )?),
    };
    let time = time.filter(|time| time.time() < far_future()).ok_or("that is too far away")?;
    if time.time() <= now {
        return Err(format!("{time} is over already"));
    }
    Ok(time)
}

/// 9999-12-31T23:59:59Z: what comes later cannot be written down.
fn far_future() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799)
}

/// Changes the file and says so where fewer can read it than before: the server may be one of them.
fn edit<T>(
    path: &Path,
    may_create: bool,
    change: impl FnOnce(&mut KeysFile) -> Result<T, AccessError>,
) -> anyhow::Result<T> {
    let was_open = KeysFile::is_open_to_others(path);
    let changed = KeysFile::edit(path, may_create, change)?;
    if was_open {
        let path = path.display();
        writeln!(
            io::stderr(),
            "note: everybody could read {path}; now only its owner and its group can. A server that is \
             neither needs its group on the file: `chgrp GROUP {path}`"
        )?;
    }
    Ok(changed)
}

fn add(arguments: AddArguments) -> anyhow::Result<()> {
    let path = arguments.file.path;
    let key = NewKey {
        name: arguments.name,
        tenant: arguments.tenant,
        priority: Priority(arguments.priority),
        limits: Limits {
            requests_per_minute: arguments.requests_per_minute,
            tokens_per_minute: arguments.tokens_per_minute,
            max_parallel: arguments.max_parallel,
        },
        expires: arguments.expires,
    };
    let (id, secret) = edit(&path, true, |file| {
        let (record, secret) = file.add(key, SystemTime::now())?;
        Ok((record.id.clone(), secret))
    })?;
    let note =
        format!("added key {id} to {}; its secret is shown now and never again:\n", path.display());
    io::stderr().write_all(note.as_bytes())?;
    writeln!(io::stdout(), "{}", secret.expose())?;
    Ok(())
}

fn revoke(arguments: &RevokeArguments) -> anyhow::Result<()> {
    let (path, id) = (&arguments.file.path, &arguments.id);
    let is_new = edit(path, false, |file| {
        let unknown = || AccessError::UnknownKey { path: path.clone(), id: id.clone() };
        file.revoke(id, SystemTime::now()).ok_or_else(unknown)
    })?;
    if !is_new {
        bail!("key {id} was revoked before");
    }
    writeln!(io::stderr(), "revoked key {id}")?;
    Ok(())
}

fn list(arguments: &ListArguments) -> anyhow::Result<()> {
    let file = KeysFile::load(&arguments.file.path)?;
    let now = SystemTime::now();
    let text = if arguments.json {
        let keys: Vec<Value> = file.keys().iter().map(|key| as_json(key, now)).collect();
        format!("{:#}\n", json!({ "keys": keys }))
    } else {
        table(&arguments.file.path, file.keys(), now)
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// A word for programs and people.
fn status(key: &KeyRecord, now: SystemTime) -> &'static str {
    match (key.revoked, key.expires) {
        (Some(_), _) => "revoked",
        (None, Some(expires)) if now >= expires.time() => "expired",
        (None, _) => "active",
    }
}

fn as_json(key: &KeyRecord, now: SystemTime) -> Value {
    let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
    json!({
        "id": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "status": status(key, now),
        "priority": key.priority,
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "max_parallel": key.max_parallel,
        "created": time(Some(key.created)),
        "expires": time(key.expires),
        "revoked": time(key.revoked),
    })
}

fn table(path: &Path, keys: &[KeyRecord], now: SystemTime) -> String {
    if keys.is_empty() {
        return format!("{} has no keys: everybody may ask\n", path.display());
    }
    let header = [
        "ID",
        "TENANT",
        "STATUS",
        "PRIORITY",
        "REQUESTS/MIN",
        "TOKENS/MIN",
        "PARALLEL",
        "EXPIRES",
        "NAME",
    ];
    let limit = |limit: Option<NonZeroU32>| limit.map_or("-".to_owned(), |limit| limit.to_string());
    let row = |key: &KeyRecord| {
        [
            key.id.clone(),
            key.tenant.clone(),
            status(key, now).to_owned(),
            key.priority.to_string(),
            limit(key.requests_per_minute),
            limit(key.tokens_per_minute),
            limit(key.max_parallel),
            key.expires.map_or("never".to_owned(), |expires| expires.to_string()),
            key.name.clone(),
        ]
    };
    let rows: Vec<_> =
        std::iter::once(header.map(str::to_owned)).chain(keys.iter().map(row)).collect();
    let mut widths = [0; 9];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    rows.iter().fold(String::new(), |mut text, row| {
        let cells: Vec<_> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_while_or_a_time() {
        let left = parse_expiry("90d").unwrap().time().duration_since(SystemTime::now()).unwrap();
        assert!(left > Duration::from_hours(90 * 24 - 1) && left <= Duration::from_hours(90 * 24));
        let day = parse_expiry("9000-01-31").unwrap();
        assert_eq!(day.to_string(), "9000-01-31T00:00:00Z");
        assert_eq!(parse_expiry("9000-01-31T00:00:00Z"), Ok(day));
        for (text, problem) in [
            ("2020-01-01", "over already"),
            ("0s", "over already"),
            ("soon", "write a while"),
            ("9999999999999y", "write a while"),
            ("99999y", "too far"),
        ] {
            let error = parse_expiry(text).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn a_list_shows_limits_and_ends_and_no_hash() {
        let mut file = KeysFile::default();
        let now = SystemTime::now();
        let limits = Limits { requests_per_minute: NonZeroU32::new(60), ..Limits::default() };
        let expires = Some(Timestamp::from_time(now + Duration::from_secs(10)));
        let key = NewKey { tenant: "acme".to_owned(), limits, expires, ..NewKey::default() };
        let (record, secret) = file.add(key.clone(), now).unwrap();
        let (id, hash) = (record.id.clone(), format!("{:?}", record.hash));
        file.add(NewKey { name: "second".to_owned(), ..key }, now).unwrap();
        file.revoke(&id, now).unwrap();
        let text = table(Path::new("k"), file.keys(), now);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[1].starts_with(&id) && lines[1].contains("revoked"), "{text}");
        assert!(lines[2].contains("active") && lines[2].ends_with("second"), "{text}");
        let later = now + Duration::from_secs(10);
        let json = as_json(&file.keys()[1], later);
        assert_eq!(
            (&json["status"], &json["requests_per_minute"]),
            (&json!("expired"), &json!(60))
        );
        assert_eq!(as_json(&file.keys()[0], later)["status"], "revoked");
        for shown in [text, json.to_string()] {
            assert!(!shown.contains(secret.expose()) && !shown.contains(&hash), "{shown}");
        }
        assert!(table(Path::new("k"), &[], now).contains("everybody may ask"));
    }
}
