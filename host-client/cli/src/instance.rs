//! `config`: the instance data of a guest. (The command line's own configuration is
//! [`crate::config`].)

use std::io::Read;

use anyhow::{Context, bail};
use serde_json::json;
use vsock_agent_client::protocol::guest_api::MAX_VALUE_BYTES;
use vsock_agent_serve::instance::{Assignment, Instance, Remark};

use crate::{
    args::{ConfigCommand, Format},
    config::Settings,
    output, serve,
};

/// `agent-cli config`.
pub(crate) fn run(settings: &Settings, command: ConfigCommand) -> anyhow::Result<u8> {
    let store = settings.instances()?;
    match command {
        ConfigCommand::Set { vm, words } => {
            let changes = assignments(&words)?;
            tell(&store.change(settings.known(&vm)?, &changes)?.1);
        }
        ConfigCommand::Unset { vm, keys } => {
            let changes: Vec<Assignment> = keys.into_iter().map(|key| (key, None)).collect();
            tell(&store.change(settings.known(&vm)?, &changes)?.1);
        }
        ConfigCommand::Get { vm, key } => {
            let instance = store.load_or_create(settings.known(&vm)?)?;
            let value = instance.get(&key)?.unwrap_or_default();
            output::line(value.strip_suffix('\n').unwrap_or(&value))?;
        }
        ConfigCommand::Show { vm, format } => {
            let instance = store.load_or_create(settings.known(&vm)?)?;
            show(settings, &instance, format.value())?;
        }
    }
    Ok(0)
}

fn tell(remarks: &[Remark]) {
    for Remark { key, text } in remarks {
        output::eprint_error(&format!("{key}: {text}"));
    }
}

fn show(settings: &Settings, instance: &Instance, format: Format) -> anyhow::Result<()> {
    let known =
        serve::report(settings).and_then(|mut report| report.guests.remove(instance.name()));
    match format {
        Format::Json => output::json(&json!({
            "name": instance.name(),
            "instance-id": instance.instance_id(),
            "hostname": instance.hostname(),
            "config": instance.config(),
            "devices": instance.devices(),
            "guest": known,
        }))?,
        Format::Human => {
            output::line(instance.to_yaml().trim_end())?;
            if let Some(known) = known {
                output::line(&format!("state: {}", known.guest.state.name()))?;
            }
        }
    }
    Ok(())
}

/// `KEY VALUE`, or `KEY=VALUE` once or more.
fn assignments(words: &[String]) -> anyhow::Result<Vec<Assignment>> {
    let whole = |word: &String| {
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
        words => match words.iter().map(whole).collect() {
            Some(changes) => Ok(changes),
            None => {
                bail!("write KEY VALUE, KEY - for a value from stdin, or KEY=VALUE once or more")
            }
        },
    }
}

fn from_stdin() -> anyhow::Result<String> {
    // One more than there may be, so that too much is seen as that.
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
    fn both_ways_to_write_an_assignment_are_read() {
        let one = |key: &str, value: &str| (key.to_owned(), Some(value.to_owned()));
        assert_eq!(read(&["user.a", "b=c"]).unwrap(), [one("user.a", "b=c")]);
        assert_eq!(read(&["user.a=b=c"]).unwrap(), [one("user.a", "b=c")]);
        assert_eq!(
            read(&["user.a=", "user.b=c"]).unwrap(),
            [one("user.a", ""), one("user.b", "c")]
        );
    }

    #[test]
    fn half_an_assignment_is_refused() {
        for words in [
            &["user.a"][..],
            &["user.a=b", "user.c"],
            &["user.a", "b", "c"],
        ] {
            read(words).unwrap_err();
        }
    }
}
