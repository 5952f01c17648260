//! Fetches a complete snapshot: by five requests if the host sends all keys at once, by one more for each
//! key otherwise.

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use vsock_agent_protocol::guest_api::{
    CONFIG, CONFIG_WITH_VALUES, DEVICES, INFO, MAX_DATA_BYTES, MAX_KEYS, META_DATA, config_key,
    is_guest_key, is_hidden_key,
};

use super::{
    host_api::{CallError, HostApi, HostClient},
    snapshot::Snapshot,
};

/// Fetches a snapshot.
///
/// # Errors
///
/// The [`CallError`] of the first failed request.
pub(super) async fn fetch(host: &HostApi) -> Result<Snapshot, CallError> {
    let mut host = host.clone().client();
    let info = get(&mut host, INFO).await?;
    let meta_data: String = get(&mut host, META_DATA).await?;
    let config = fetch_config(&mut host).await?;
    let devices = get(&mut host, DEVICES).await?;
    // The meta-data contain the instance-id. If it changed meanwhile, the keys may be of another instance.
    if get::<String>(&mut host, META_DATA).await? != meta_data {
        return Err(malformed(META_DATA));
    }
    Ok(Snapshot {
        info,
        config,
        meta_data,
        devices,
    })
}

async fn fetch_config(host: &mut HostClient) -> Result<BTreeMap<String, String>, CallError> {
    let listed = match host.call(Method::GET, CONFIG_WITH_VALUES, None).await {
        Err(CallError::Refused { status, .. }) if status.is_client_error() => {
            host.call(Method::GET, CONFIG, None).await
        }
        listed => listed,
    };
    let mut config = Config::default();
    let paths = match listed? {
        Value::Object(values) => {
            for (key, value) in values {
                let Value::String(value) = value else {
                    return Err(malformed(CONFIG));
                };
                if is_shown(&key) {
                    config.add(key, value)?;
                }
            }
            return Ok(config.values);
        }
        // The host has ignored the query.
        paths => parse::<Option<Vec<String>>>(CONFIG, paths)?.unwrap_or_default(),
    };
    for key in paths.iter().filter_map(|path| shown_key(path)) {
        match get(host, &config_key(key)).await {
            Err(CallError::Refused {
                status: StatusCode::NOT_FOUND,
                ..
            }) => {}
            value => config.add(key.to_owned(), value?)?,
        }
    }
    Ok(config.values)
}

/// The fetched keys with a value.
#[derive(Debug, Default)]
struct Config {
    values: BTreeMap<String, String>,
    bytes: usize,
}

impl Config {
    fn add(&mut self, key: String, value: String) -> Result<(), CallError> {
        self.bytes += key.len() + value.len();
        if self.values.len() == MAX_KEYS || self.bytes > MAX_DATA_BYTES {
            return Err(malformed(CONFIG));
        }
        if !value.is_empty() {
            self.values.insert(key, value);
        }
        Ok(())
    }
}

/// The key in a path of the host, which is not percent-encoded, if it is visible to guests.
fn shown_key(path: &str) -> Option<&str> {
    let key = path.strip_prefix(CONFIG)?.strip_prefix('/')?;
    is_shown(key).then_some(key)
}

fn is_shown(key: &str) -> bool {
    is_guest_key(key) && !is_hidden_key(key)
}

async fn get<T: DeserializeOwned>(host: &mut HostClient, path: &str) -> Result<T, CallError> {
    let value = host.call(Method::GET, path, None).await?;
    parse(path, value)
}

fn parse<T: DeserializeOwned>(path: &str, value: Value) -> Result<T, CallError> {
    serde_json::from_value(value).map_err(|_| malformed(path))
}

fn malformed(path: &str) -> CallError {
    CallError::Malformed(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_that_are_visible_to_guests_are_fetched() {
        assert_eq!(shown_key("/1.0/config/user.a b%41"), Some("user.a b%41"));
        assert_eq!(shown_key("/1.0/config/volatile.uuid"), None);
        assert_eq!(shown_key("/1.0/config/cloud-init.ssh-keys.ann"), None);
        assert_eq!(shown_key("/1.0/configuser.a"), None);
        assert_eq!(shown_key("user.a"), None);
    }

    #[test]
    fn too_many_keys_or_bytes_are_refused() {
        let mut config = Config::default();
        config.add("user.empty".to_owned(), String::new()).unwrap();
        for number in 0..MAX_KEYS {
            config
                .add(format!("user.{number}"), "x".to_owned())
                .unwrap();
        }
        assert_eq!(config.values.len(), MAX_KEYS);
        config
            .add("user.more".to_owned(), "x".to_owned())
            .unwrap_err();
        let key = "user.large".to_owned();
        let most = MAX_DATA_BYTES - key.len();
        let mut config = Config::default();
        config.add(key.clone(), "x".repeat(most)).unwrap();
        let mut config = Config::default();
        config.add(key, "x".repeat(most + 1)).unwrap_err();
    }
}
