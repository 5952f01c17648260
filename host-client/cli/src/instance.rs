//! `config`: the instance data of a guest. The configuration of `agent-cli` itself is
//! [`crate::config`].

use std::io::Read;

use anyhow::Context;
use serde_json::json;
use vsock_agent_client::protocol::guest_api::MAX_VALUE_BYTES;
use vsock_agent_serve::instance::{Assignment, Instance, Remark};

use crate::{args::ConfigCommand, config::Settings, output, serve};

/// `agent-cli config`.
pub(crate) fn run(settings: &Settings, command: ConfigCommand) -> anyhow::Result<u8> {
    let store = settings.instances()?;
    let change = |vm: &str, changes: &[Assignment]| -> anyhow::Result<()> {
        let (_, remarks) = store.change(settings.known(vm)?, changes)?;
        for Remark { key, text } in remarks {
            output::eprint_error(&format!("{key}: {text}"));
        }
        Ok(())
    };
    match command {
        ConfigCommand::Set { vm, words } => change(&vm, &assignments(&words)?)?,
        ConfigCommand::Unset { vm, keys } => {
            let changes = keys.into_iter().map(|key| (key, None));
            change(&vm, &Vec::from_iter(changes))?;
        }
        ConfigCommand::Get { vm, key } => {
            let instance = store.load_or_create(settings.known(&vm)?)?;
            let value = instance.get(&key)?.unwrap_or_default();
            output::line(value.strip_suffix('\n').unwrap_or(&value))?;
        }
        ConfigCommand::Show { vm, format } => {
            let instance = store.load_or_create(settings.known(&vm)?)?;
            show(settings, &instance, format.is_json())?;
        }
    }
    Ok(0)
}

fn show(settings: &Settings, instance: &Instance, is_json: bool) -> anyhow::Result<()> {
    let status =
        serve::report(settings).and_then(|mut report| report.guests.remove(instance.name()));
    if is_json {
        return Ok(output::json(&json!({
            "name": instance.name(),
            "instance-id": instance.instance_id(),
            "hostname": instance.hostname(),
            "config": instance.config(),
            "devices": instance.devices(),
            "guest": status,
        }))?);
    }
    output::line(instance.to_yaml().trim_end())?;
    if let Some(status) = status {
        output::line(&format!("state: {}", status.guest.state.name()))?;
    }
    Ok(())
}

/// Parses `KEY VALUE`, or `KEY=VALUE` once or more.
fn assignments(words: &[String]) -> anyhow::Result<Vec<Assignment>> {
    let key_value = |word: &String| {
        let (key, value) = word.split_once('=')?;
        Some((key.to_owned(), Some(value.to_owned())))
    };
    match words {
        [key, value] if !key.contains('=') => {
            let value = match &value[..] {
                "-" => from_stdin()?,
                value => value.to_owned(),
            };
            Ok(vec![(key.clone(), Some(value))])
        }
        words => words
            .iter()
            .map(key_value)
            .collect::<Option<_>>()
            .context("write KEY VALUE, KEY - for a value from stdin, or KEY=VALUE once or more"),
    }
}

fn from_stdin() -> anyhow::Result<String> {
    // One byte more than allowed, so that a value that is too large is detected.
    let limit = u64::try_from(MAX_VALUE_BYTES)?.saturating_add(1);
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(limit)
        .read_to_end(&mut bytes)
        .context("cannot read stdin")?;
    String::from_utf8(bytes).context(
        "the value is not UTF-8, which is all the guest API can carry: put it into a MIME part \
         with base64",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> anyhow::Result<Vec<Assignment>> {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        assignments(&words)
    }

    #[test]
    fn config_set_parses_both_forms_of_assignments() {
        let one = |key: &str, value: &str| (key.to_owned(), Some(value.to_owned()));
        assert_eq!(read(&["user.a", "b=c"]).unwrap(), [one("user.a", "b=c")]);
        assert_eq!(read(&["user.a=b=c"]).unwrap(), [one("user.a", "b=c")]);
        assert_eq!(
            read(&["user.a=", "user.b=c"]).unwrap(),
            [one("user.a", ""), one("user.b", "c")]
        );
    }

    #[test]
    fn config_set_refuses_incomplete_assignments() {
        for words in [
            &["user.a"][..],
            &["user.a=b", "user.c"],
            &["user.a", "b", "c"],
        ] {
            read(words).unwrap_err();
        }
    }
}
