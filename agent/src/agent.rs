//! The agent: binds its sockets, runs its tasks and stops them.

use std::{
    future::Future,
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::select;
use vsock_agent_transport::Listener;

use crate::{
    app::{App, Policy},
    config::{Config, Feature, Security},
    defaults,
    guest::{
        guest_api::GuestApi,
        instance_data::{Refresher, SavedSnapshot},
        metadata::MetadataServices,
        provisioner::{Provisioner, wait_until_ready},
    },
    http::{
        identity::IdentityError,
        listen::{self, ListenAddress},
    },
    lxd_host::{
        config_share::{Applied, ConfigShare, Hotplug},
        status_port::{Status, StatusPorts},
    },
    server::{Server, Trust},
    shutdown::Shutdown,
    system::memory,
};

/// An agent with bound sockets. Connections are accepted by [`Agent::run`].
#[derive(Debug)]
pub struct Agent {
    listeners: Vec<Listener>,
    app: Arc<App>,
    server: Arc<Server>,
    refresher: Refresher,
    default_host: Option<ListenAddress>,
    guest: Provisioner,
    ready_timeout: Option<Duration>,
    shutdown: Shutdown,
}

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// There is no usable identity.
    #[error("no usable identity")]
    Identity(#[from] IdentityError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: ListenAddress,
        /// The cause.
        source: io::Error,
    },
}

impl Agent {
    /// Reads the identity, applies the config share, and binds all addresses. Waits
    /// [`defaults::BIND_TIMEOUT`] at most for a vsock device.
    ///
    /// # Errors
    ///
    /// The first [`BindError`]. No address stays bound.
    pub async fn bind(mut config: Config) -> Result<Self, BindError> {
        raise_file_limit();
        if !config.features.has(Feature::GuestApi) {
            config.guest.sockets.clear();
        }
        let trust = Trust::new(&config)?;
        match &config.security {
            Security::Tls(_) => {}
            Security::Plain => {
                tracing::warn!(
                    "serving without TLS: any client that can connect to a listener has root access to the guest"
                );
            }
        }
        let applied = match &config.share {
            Some(share) => {
                let may_mount = config.features.has(Feature::Mounts);
                share.apply(&config.root, may_mount).await
            }
            None => Applied::default(),
        };
        tracing::debug!(?applied, "applied the config share");
        let mut listeners = Vec::new();
        for address in &config.listen {
            let listener = listen::bind(address)
                .await
                .map_err(|source| BindError::Listen {
                    address: address.clone(),
                    source,
                })?;
            tracing::info!(%address, tls = trust.is_tls(), "listening");
            listeners.push(listener);
        }
        let shutdown = Shutdown::default();
        let app = Arc::new(App::new(
            shutdown.clone(),
            config.end_commands,
            config.family,
            policy(&config),
            Hotplug::new(config.root.clone(), config.family),
            StatusPorts::new(config.status_ports),
        ));
        if let Some(connection) = config.share.as_ref().and_then(ConfigShare::connection)
            && let Err(error) = app.host.set_connection(connection)
        {
            tracing::warn!(%error, "the address of the host in the config share is invalid");
        }
        app.status_ports.write(Status::Started);
        let identity = match config.security {
            Security::Tls(folder) => Some(folder),
            Security::Plain => None,
        };
        let data = app.instance_data.clone();
        let wants_data = config.guest.wants_data();
        let saved = wants_data.then(|| SavedSnapshot::new(&config.root, identity.as_deref()));
        let refresher = Refresher::new(
            data.clone(),
            &app.host,
            &app.events,
            config.guest.host.clone(),
            identity,
            saved.flatten(),
        );
        let availability = data.watch();
        let metadata = MetadataServices::new(
            config.guest.presets.clone(),
            data.clone(),
            config.root.clone(),
            shutdown.clone(),
        );
        let api = GuestApi::new(data, shutdown.clone());
        let has_host = config.guest.host.is_some() || app.host.watch().borrow().is_some();
        let looks_for_host = !has_host && wants_data;
        let default_host = config.guest.default_host.take().filter(|_| looks_for_host);
        let ready_timeout = config.guest.ready_timeout;
        let guest = Provisioner::new(
            api,
            metadata,
            config.guest,
            config.root,
            applied,
            availability,
        );
        let server = Server::new(Arc::clone(&app), trust);
        Ok(Self {
            listeners,
            app,
            server,
            refresher,
            default_host,
            guest,
            ready_timeout,
            shutdown,
        })
    }

    /// A handle that reloads the configuration while the agent runs.
    pub fn reloader(&self) -> Reloader {
        Reloader {
            app: Arc::clone(&self.app),
            server: Arc::clone(&self.server),
        }
    }

    /// Serves until `until` resolves. Then accepts no new connections, keeps or ends running commands as
    /// configured, and aborts tasks that do not end within [`defaults::SHUTDOWN_TIMEOUT`]. True if none was
    /// aborted.
    ///
    /// Calls `ready` once, when the boot may continue: the instance data are available, not expected, or
    /// late.
    pub async fn run(
        mut self,
        ready: impl FnOnce() + Send + 'static,
        until: impl Future<Output = ()>,
    ) -> bool {
        for listener in self.listeners {
            self.shutdown
                .spawn(Arc::clone(&self.server).accept_all(listener));
        }
        let stop = self.shutdown.child_token();
        let app = Arc::clone(&self.app);
        self.shutdown.spawn(async move {
            stop.run_until_cancelled(async {
                tokio::join!(app.commands.clean_up(), memory::trim());
            })
            .await;
        });
        if let Some(address) = self.default_host {
            self.refresher.probe(address).await;
        }
        let limit = match self.ready_timeout {
            Some(limit) => limit,
            None if self.refresher.expects_data() => defaults::READY_TIMEOUT,
            None => Duration::ZERO,
        };
        let readiness = wait_until_ready(self.guest.stage(), limit);
        let is_released = self.guest.is_released();
        let stop = || self.shutdown.child_token();
        self.shutdown.spawn(self.refresher.run(stop()));
        self.shutdown.spawn(self.guest.run(stop()));
        let stop = stop();
        self.shutdown.spawn(async move {
            if stop.run_until_cancelled(readiness).await.is_some() {
                is_released.store(true, Ordering::Release);
                ready();
            }
        });
        select! {
            () = until => {}
            () = self.app.status_ports.repeat() => {}
        }
        tracing::info!("stopping");
        self.app.status_ports.write(Status::Stopped);
        self.shutdown.finish(defaults::SHUTDOWN_TIMEOUT).await
    }
}

fn policy(config: &Config) -> Policy {
    Policy {
        features: config.features.clone(),
        exec: config.exec_policy.clone(),
    }
}

/// Reloads the configuration. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reloader {
    app: Arc<App>,
    server: Arc<Server>,
}

impl Reloader {
    /// Applies the certificates, context ids, features and command rules of `config`, and no other option.
    /// Clients that are no longer admitted are disconnected, which ends their commands; other clients are not
    /// affected. Blocks on the files.
    ///
    /// # Errors
    ///
    /// [`IdentityError`], also if `config` switches TLS on or off. Nothing is changed then.
    pub fn reload(&self, config: &Config) -> Result<(), IdentityError> {
        let trust = Trust::new(config)?;
        self.server.trust(trust)?;
        self.app.set_policy(policy(config));
        Ok(())
    }
}

/// Raises the soft limit on open files to the hard limit: a thousand commands need several thousand.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use vsock_agent_metadata::PresetConfig;
    use vsock_agent_protocol::{host::HostConnection, version::Family};

    use super::*;
    use crate::{
        config::{CloudInit, Features, GuestConfig},
        exec::ExecPolicy,
    };

    async fn known(folder: &Path, connection: &str) -> Option<HostConnection> {
        fs::write(folder.join("agent.conf"), connection).unwrap();
        let config = Config {
            listen: vec![ListenAddress::Unix(folder.join("sock"))],
            security: Security::Plain,
            allowed_cids: Vec::new(),
            end_commands: true,
            family: Family::Lxd,
            features: Features::all(),
            exec_policy: ExecPolicy::default(),
            guest: GuestConfig {
                host: None,
                default_host: None,
                sockets: Vec::new(),
                cloud_init: CloudInit::Off,
                cloud_init_reboot: false,
                ready_timeout: None,
                presets: PresetConfig::default(),
            },
            log: tracing::Level::ERROR,
            root: folder.to_owned(),
            share: Some(ConfigShare::new(folder.to_owned())),
            status_ports: Vec::new(),
        };
        Agent::bind(config).await.unwrap().app.host.known()
    }

    #[tokio::test]
    async fn the_host_address_in_the_config_share_is_used() {
        let folder = std::env::temp_dir().join(format!("agent-conf-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let text = r#"{"cid": 2, "port": 39041, "certificate": "", "dev_incus": true}"#;
        let expected = HostConnection::new("2:39041".parse().unwrap());
        assert_eq!(known(&folder, text).await, Some(expected));
        for malformed in ["", "{", "{}", r#"{"port": 1, "certificate": "no PEM"}"#] {
            assert_eq!(known(&folder, malformed).await, None, "{malformed}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
