//! A complete snapshot, question by question.

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use vsock_agent_protocol::guest_api::{
    CONFIG, DEVICES, INFO, MAX_DATA_BYTES, MAX_KEYS, META_DATA, config_key, is_guest_key,
    is_hidden_key,
};

use super::{
    host_api::{CallError, Caller, HostApi},
    snapshot::Snapshot,
};

/// Asks the host for everything.
///
/// # Errors
///
/// [`CallError`] for the first thing that does not come: half a snapshot is none.
pub(super) async fn fetch(host: &HostApi) -> Result<Snapshot, CallError> {
    let mut host = host.clone().caller();
    let info = get(&mut host, INFO).await?;
    let meta_data: String = get(&mut host, META_DATA).await?;
    let config = fetch_config(&mut host).await?;
    let devices = get(&mut host, DEVICES).await?;
    // The instance-id is in the meta-data: keys of one and meta-data of another would not do.
    if get::<String>(&mut host, META_DATA).await? != meta_data {
        return Err(CallError::Nonsense(META_DATA.to_owned()));
    }
    Ok(Snapshot {
        info,
        config,
        meta_data,
        devices,
    })
}

async fn fetch_config(host: &mut Caller) -> Result<BTreeMap<String, String>, CallError> {
    let paths: Option<Vec<String>> = get(host, CONFIG).await?;
    let paths = paths.unwrap_or_default();
    let keys = paths.iter().filter_map(|path| shown_key(path));
    let mut config = BTreeMap::new();
    let mut bytes = 0;
    for key in keys {
        let path = config_key(key);
        let value: String = match get(host, &path).await {
            Err(CallError::Refused {
                status: StatusCode::NOT_FOUND,
                ..
            }) => continue,
            value => value?,
        };
        bytes += key.len() + value.len();
        if config.len() == MAX_KEYS || bytes > MAX_DATA_BYTES {
            return Err(CallError::Nonsense(CONFIG.to_owned()));
        }
        if !value.is_empty() {
            config.insert(key.to_owned(), value);
        }
    }
    Ok(config)
}

/// The key in one of the host's paths, which are not escaped, if guests may see it.
fn shown_key(path: &str) -> Option<&str> {
    let key = path.strip_prefix(CONFIG)?.strip_prefix('/')?;
    (is_guest_key(key) && !is_hidden_key(key)).then_some(key)
}

async fn get<T: DeserializeOwned>(host: &mut Caller, path: &str) -> Result<T, CallError> {
    let value: Value = host.call(Method::GET, path, None).await?;
    serde_json::from_value(value).map_err(|_| CallError::Nonsense(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_guests_keys_are_asked_for() {
        assert_eq!(shown_key("/1.0/config/user.a b%41"), Some("user.a b%41"));
        assert_eq!(shown_key("/1.0/config/volatile.uuid"), None);
        assert_eq!(shown_key("/1.0/config/cloud-init.ssh-keys.ann"), None);
        assert_eq!(shown_key("/1.0/configuser.a"), None);
        assert_eq!(shown_key("user.a"), None);
    }
}
