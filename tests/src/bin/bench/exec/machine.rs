//! In a virtual machine, which is emulated where KVM does not work: only ratios mean anything.
//!
//! LXD's and Incus's agents cannot run at once, as both have the same port. So everything is measured
//! twice in one run of the machine, with one of them and with the other.

use anyhow::Context;
use harness::{RawClient, vm::StockAgent};
use tokio::time::Instant;
use vsock_agent_client::Client;

use super::{
    client::{self, crowd, drain, fill, sink, source},
    guest::{
        ECHO_PORT, Guest, IN_PORT, OUT_PORT, SHORT_PORT, Stock, TERMINAL_PORT, TRUE_PORT,
        stock_name,
    },
    keyboard::Keyboard,
    lxd, names,
    program::{self, Words},
    table::{Measure, Place, Unit},
    turns::{self, Way, timed},
};
use crate::{Options, contest::Times};

/// Runs of what is fast, in a turn.
const FAST: u64 = 20;

/// Runs of what takes ten times as long.
const SLOW: u64 = 3;

/// Commands at once.
const AT_ONCE: usize = 100;

/// Commands at once by LXD's client, which does the hundred in this many tasks. An agent of LXD gives each
/// command 5 s to get its websockets, and needs longer for a hundred in an emulated machine.
const FEW_AT_ONCE: usize = 20;

/// Bytes of a short stream.
const SHORT_BYTES: u64 = 1024 * 1024;

/// Bytes of a long stream. An emulated machine moves 10 to 80 MiB in a second.
const LONG_BYTES: u64 = 64 * 1024 * 1024;

/// Starts of an agent with each of the others.
const STARTS: usize = 2;

/// One machine, one of the other agents, and how much is done.
struct Half<'a> {
    guest: &'a Guest,
    stock: Stock,
    rounds: usize,
    fast: usize,
    slow: usize,
    short: u64,
    long: u64,
}

/// Measures all of it.
pub(super) async fn measure(options: &Options) -> anyhow::Result<Vec<Measure>> {
    let short = options.scaled_bytes(SHORT_BYTES);
    let long = options.scaled_bytes(LONG_BYTES);
    let guest = Guest::start(short, long).await?;
    let mut all = Vec::new();
    for kind in [StockAgent::Lxd, StockAgent::Incus] {
        let (stock, starts) = starts(&guest, kind).await?;
        let half = Half {
            guest: &guest,
            stock,
            rounds: options.runs.div_ceil(2),
            fast: options.scaled(FAST)?,
            slow: options.scaled(SLOW)?,
            short,
            long,
        };
        merge(&mut all, half.measure().await?);
        merge(&mut all, starts);
        drop(half);
        guest.until_ended().await?;
    }
    let sizes = guest.sizes.iter();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let sizes = sizes.map(|(name, bytes)| Times::of(name, vec![*bytes as f64]));
    all.push(in_machine(names::SIZE, Unit::Bytes, sizes.collect()));
    Ok(all)
}

/// Starts ours and another's a few times. The last of the other stays.
async fn starts(guest: &Guest, kind: StockAgent) -> anyhow::Result<(Stock, Vec<Measure>)> {
    let mut runs = [const { Vec::new() }; 4];
    loop {
        let ours = guest.start_ours().await?;
        let stock = guest.start_stock(kind).await?;
        let [our_start, our_memory, start, memory] = &mut runs;
        our_start.push(ours.started);
        our_memory.push(ours.memory);
        start.push(stock.running.started);
        memory.push(stock.running.memory);
        if start.len() == STARTS {
            let [our_start, our_memory, start, memory] = runs;
            let both = |ours, theirs| {
                let theirs = Times::of(stock_name(kind), theirs);
                vec![Times::of(names::OUR_AGENT, ours), theirs]
            };
            let measures = vec![
                in_machine(names::START, Unit::Seconds, both(our_start, start)),
                in_machine(names::MEMORY, Unit::Bytes, both(our_memory, memory)),
            ];
            return Ok((stock, measures));
        }
        drop((ours, stock));
        guest.until_ended().await?;
    }
}

impl Half<'_> {
    async fn measure(&self) -> anyhow::Result<Vec<Measure>> {
        let (some, one) = (self.rounds, 1);
        let out = |port, bytes, batch| self.output(port, bytes, batch);
        Ok(vec![
            take(names::TRUE, some, &self.sequence()).await?,
            take(names::HUNDRED, one, &self.crowd()).await?,
            take(names::KEY, some, &self.keys().await?).await?,
            take(
                names::SHORT_OUT,
                some,
                &out(SHORT_PORT, self.short, self.slow),
            )
            .await?,
            take(names::LONG_OUT, one, &out(OUT_PORT, self.long, 1)).await?,
            take(names::LONG_IN, one, &self.input()).await?,
        ])
    }

    /// Our client on both agents of ours, and on the other one.
    fn clients(&self) -> [(&'static str, Client); 3] {
        let other = match self.stock.kind {
            StockAgent::Lxd => names::CLIENT_ON_LXD,
            StockAgent::Incus => names::CLIENT_ON_INCUS,
        };
        [
            (names::PLAIN, self.guest.plain.clone()),
            (names::TLS, self.guest.tls.clone()),
            (other, self.stock.client.clone()),
        ]
    }

    /// LXD's client on ours, and on LXD's: the names for one at a time, and for several.
    fn lxd(&self) -> Vec<(&'static str, &'static str, RawClient)> {
        match self.stock.kind {
            StockAgent::Lxd => vec![
                (
                    names::LXD_ON_OURS,
                    names::FEW_LXD_ON_OURS,
                    self.guest.raw.clone(),
                ),
                (
                    names::LXD_ON_LXD,
                    names::FEW_LXD_ON_LXD,
                    self.stock.raw.clone(),
                ),
            ],
            StockAgent::Incus => Vec::new(),
        }
    }

    /// A way by our client, on each agent.
    fn by_client<F>(&self, batch: usize, once: impl Fn(Client) -> F + Clone + 'static) -> Vec<Way>
    where
        F: Future<Output = anyhow::Result<f64>> + Send + 'static,
    {
        let clients = self.clients().into_iter();
        let ways = clients.map(|(name, client)| {
            let once = once.clone();
            Way::new(name, batch, move || once(client.clone()))
        });
        ways.collect()
    }

    /// A way by each of these programs, which run `words` in the guest.
    fn by_program<F>(
        &self,
        programs: &[&'static str],
        batch: usize,
        words: &[&str],
        once: impl Fn(Words) -> F + Clone + 'static,
    ) -> Vec<Way>
    where
        F: Future<Output = anyhow::Result<f64>> + Send + 'static,
    {
        let ways = programs.iter().map(|name| {
            let (words, once) = (self.guest.program(name, words), once.clone());
            Way::new(name, batch, move || once(words.clone()))
        });
        ways.collect()
    }

    fn sequence(&self) -> Vec<Way> {
        let port = self.guest.port(TRUE_PORT);
        let floor = Way::new(names::SOCAT, self.fast, move || nothing(port.clone()));
        let programs = [
            names::CLI_PLAIN,
            names::CLI_TLS,
            names::SSH_MASTER,
            names::SSH,
        ];
        let mut ways = vec![floor];
        ways.extend(self.by_client(self.fast, client::nothing));
        ways.extend(self.by_program(&programs, self.slow, &["true"], program::nothing));
        ways.extend(
            self.lxd()
                .into_iter()
                .map(|(name, _, raw)| Way::new(name, self.slow, move || lxd::nothing(raw.clone()))),
        );
        ways
    }

    fn crowd(&self) -> Vec<Way> {
        let port = self.guest.port(TRUE_PORT);
        let floor = Way::new(names::SOCAT, 1, move || {
            let port = port.clone();
            crowd(AT_ONCE, 1, move || nothing(port.clone()))
        });
        let mut ways = vec![floor];
        ways.extend(self.by_client(1, |client| {
            crowd(AT_ONCE, 1, move || client::nothing(client.clone()))
        }));
        // Not once more with the other agent: these take long.
        let programs: &[_] = match self.stock.kind {
            StockAgent::Lxd => &[names::CLI_TLS, names::SSH_MASTER],
            StockAgent::Incus => &[],
        };
        ways.extend(self.by_program(programs, 1, &["true"], |words| {
            crowd(AT_ONCE, 1, move || program::nothing(words.clone()))
        }));
        ways.extend(self.lxd().into_iter().map(|(_, name, raw)| {
            Way::new(name, 1, move || {
                let raw = raw.clone();
                crowd(FEW_AT_ONCE, AT_ONCE / FEW_AT_ONCE, move || {
                    lxd::nothing(raw.clone())
                })
            })
        }));
        ways
    }

    async fn keys(&self) -> anyhow::Result<Vec<Way>> {
        let [terminal, echo] = [TERMINAL_PORT, ECHO_PORT].map(|port| self.guest.port(port));
        let mut keyboards = vec![
            (names::SOCAT, Keyboard::of_stream(&terminal).await),
            (names::STREAM, Keyboard::of_stream(&echo).await),
        ];
        for (name, client) in self.clients() {
            keyboards.push((name, Keyboard::of_client(&client).await?));
        }
        let ssh = self.guest.program(names::SSH_MASTER, &["-tt", "cat"]);
        keyboards.push((names::SSH_MASTER, Keyboard::of_program(&ssh)?));
        let ways = keyboards
            .into_iter()
            .map(|(name, keyboard)| Way::new(name, self.fast, move || keyboard.clone().press()));
        Ok(ways.collect())
    }

    fn output(&self, port: u32, bytes: u64, batch: usize) -> Vec<Way> {
        let port = self.guest.port(port);
        let floor = Way::new(names::SOCAT, batch, move || stream_out(port.clone(), bytes));
        let mut ways = vec![floor];
        ways.extend(self.by_client(batch, move |client| client::output(client, bytes)));
        let words = source(bytes);
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let programs = [names::CLI_TLS, names::SSH_MASTER];
        ways.extend(self.by_program(&programs, batch, &words, move |words| {
            program::output(words, bytes)
        }));
        ways
    }

    fn input(&self) -> Vec<Way> {
        let (port, bytes) = (self.guest.port(IN_PORT), self.long);
        let floor = Way::new(names::SOCAT, 1, move || stream_in(port.clone(), bytes));
        let mut ways = vec![floor];
        ways.extend(self.by_client(1, move |client| client::input(client, bytes)));
        let words = sink();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let programs = [names::CLI_TLS, names::SSH_MASTER];
        ways.extend(self.by_program(&programs, 1, &words, move |words| {
            program::input(words, bytes)
        }));
        ways
    }
}

async fn take(name: &'static str, rounds: usize, ways: &[Way]) -> anyhow::Result<Measure> {
    let begin = Instant::now();
    let times = turns::take(ways, rounds).await.context(name)?;
    eprintln!("{name}: measured in {:.0?}", begin.elapsed());
    Ok(in_machine(name, Unit::Seconds, times))
}

/// A connection to socat whose command does nothing.
async fn nothing(port: RawClient) -> anyhow::Result<f64> {
    stream_out(port, 0).await
}

/// So many bytes of socat's command.
async fn stream_out(port: RawClient, bytes: u64) -> anyhow::Result<f64> {
    timed(async { drain(port.try_connect().await?, bytes).await }).await
}

/// So many bytes for socat's command, which ends then.
async fn stream_in(port: RawClient, bytes: u64) -> anyhow::Result<f64> {
    timed(async {
        let mut stream = port.try_connect().await?;
        fill(&mut stream, bytes).await?;
        drain(stream, 0).await
    })
    .await
}

const fn in_machine(name: &'static str, unit: Unit, ways: Vec<Times>) -> Measure {
    Measure {
        place: Place::Machine,
        name,
        unit,
        ways,
    }
}

/// Adds what was measured with another agent.
fn merge(all: &mut Vec<Measure>, more: Vec<Measure>) {
    for measure in more {
        match all.iter_mut().find(|known| known.name == measure.name) {
            Some(known) => known.add(measure.ways),
            None => all.push(measure),
        }
    }
}
