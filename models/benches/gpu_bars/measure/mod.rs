//! What is measured and in which order; how time is taken is `clock.rs`, what comes of it `table.rs`.

mod clock;
mod delta;
mod experts;
mod make;
mod model;
mod pages;
mod peaks;
mod peer;
mod products;
mod sizes;
mod table;

use std::time::{Duration, Instant};

use candle_core::Device;
use sconce_models::DeviceChoice;

use self::clock::Clock;
use self::peaks::Peaks;
use self::peer::Peer;
pub(crate) use self::sizes::Sizes;
#[cfg_attr(test, allow(unused_imports, reason = "the benchmark writes files"))]
pub(crate) use self::table::HEADER;
pub(crate) use self::table::{Bar, Row, Table};

/// What can fail: a kernel, a device, a peer.
pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// What is to be measured.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Where.
    pub(crate) device: DeviceChoice,
    /// At which sizes.
    pub(crate) sizes: Sizes,
    /// For how long; parts that have not begun by then are left out, and fail. A peer has a sixth more.
    pub(crate) time: Duration,
    /// A Python and the script that measures peers.
    pub(crate) peer: Option<[String; 2]>,
    /// Names of parts; all if empty.
    pub(crate) parts: Vec<String>,
}

impl Request {
    /// All parts in nine minutes, without peers.
    pub(crate) fn new(device: DeviceChoice, sizes: Sizes) -> Self {
        Self { device, sizes, time: Duration::from_secs(540), peer: None, parts: Vec::new() }
    }
}

/// What parts measure with.
pub(crate) struct Bench {
    device: Device,
    choice: DeviceChoice,
    sizes: Sizes,
    clock: Clock,
    peaks: Peaks,
    peer: Peer,
    table: Table,
}

type Part = fn(&mut Bench) -> Outcome<()>;

/// The parts; last the one whose peer may compile for minutes.
const PARTS: [(&str, Part); 7] = [
    ("delta-decode", delta::decode),
    ("gemv", products::gemv),
    ("experts-decode", experts::decode),
    ("experts-prefill", experts::prefill),
    ("model", model::measure),
    ("pages", pages::measure),
    ("delta-prefill", delta::prefill),
];

/// Measures all that is asked for, and hands each row to `heard` when it is there.
///
/// # Errors
/// No such device or part; one that cannot even copy. What fails later is a row of the table.
pub(crate) fn run(request: &Request, heard: &mut dyn FnMut(&Row)) -> Outcome<Table> {
    let began = Instant::now();
    let known = |name: &String| PARTS.iter().any(|(part, _)| part == name);
    if let Some(unknown) = request.parts.iter().find(|name| !known(name)) {
        let names = PARTS.map(|(name, _)| name).join(", ");
        return Err(format!("expected parts of {names}, found {unknown}").into());
    }
    let device = request.device.open()?;
    let clock = Clock::new(&request.sizes);
    let peaks = Peaks::measure(&device, &clock, &request.sizes)?;
    let peer = Peer::start(request.peer.as_ref(), began + request.time * 7 / 6);
    let (choice, sizes) = (request.device, request.sizes.clone());
    let mut bench = Bench { device, choice, sizes, clock, peaks, peer, table: Table::default() };
    bench.table.push(bench.peaks.row());
    let mut told = 0;
    for (name, part) in PARTS {
        if !request.parts.is_empty() && !request.parts.iter().any(|wanted| wanted == name) {
            continue;
        }
        if began.elapsed() >= request.time {
            bench.table.push(Row::failed(name, "no time left"));
        } else if let Err(error) = part(&mut bench) {
            bench.table.push(Row::failed(name, &error.to_string()));
        }
        bench.table.rows()[told..].iter().for_each(&mut *heard);
        told = bench.table.rows().len();
    }
    Ok(bench.table)
}
