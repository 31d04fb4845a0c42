//! What the Rust peers share: the command line, the lines of JSON on standard output, and a socket with large
//! buffers. README of all of them is control/bench/peers.py.
//!
//!     PROGRAM version
//!     PROGRAM serve      --listen [ADDRESS]:PORT --cert PEM --key PEM
//!     PROGRAM download   --to [ADDRESS]:PORT --ca PEM --seconds S
//!     PROGRAM requests   --to … --ca PEM --seconds S --bytes 512
//!     PROGRAM handshakes --to … --ca PEM --seconds S --concurrency 8

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

pub const ALPN: &[u8] = b"perf";
pub const SERVER_NAME: &str = "server"; // In the certificate.
pub const HEADER_BYTES: usize = 8;
pub const FOR_EVER_BYTES: u64 = 1 << 50; // A download that only the clock ends.
pub const WINDOW_BYTES: u64 = 64 << 20; // Of a stream; of the connection four times as much.
pub const SOCKET_BYTES: libc::c_int = 8 << 20;
pub const CHUNK_BYTES: usize = 256 << 10; // Given to the library at once.
pub static PAYLOAD: [u8; CHUNK_BYTES] = [0x5a; CHUNK_BYTES];

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

pub struct Options {
    pub command: String,
    pub address: SocketAddr,
    pub cert: String,
    pub key: String,
    pub ca: String,
    pub seconds: f64,
    pub bytes: u64,
    pub concurrency: usize,
    pub datagram: u16,
}

impl Options {
    pub fn parse() -> Result<Options, Failure> {
        let mut words = std::env::args().skip(1);
        let mut options = Options {
            command: words.next().ok_or("which command? version, serve, download, requests or handshakes")?,
            address: SocketAddr::from(([0u16; 8], 0)),
            cert: String::new(),
            key: String::new(),
            ca: String::new(),
            seconds: 3.0,
            bytes: 512,
            concurrency: 8,
            datagram: 1452,
        };
        while let Some(name) = words.next() {
            let value = words.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--listen" | "--to" => options.address = value.parse()?,
                "--cert" => options.cert = value,
                "--key" => options.key = value,
                "--ca" => options.ca = value,
                "--seconds" => options.seconds = value.parse()?,
                "--bytes" => options.bytes = value.parse()?,
                "--concurrency" => options.concurrency = value.parse()?,
                "--datagram" => options.datagram = value.parse()?,
                _ => return Err(format!("{name} is unknown").into()),
            }
        }
        Ok(options)
    }

    pub fn end(&self) -> Instant {
        Instant::now() + Duration::from_secs_f64(self.seconds)
    }

    /// A request: how many bytes are wanted, and filling up to `--bytes`.
    pub fn request(&self) -> Vec<u8> {
        let mut request = header(self.bytes).to_vec();
        request.resize((self.bytes as usize).max(HEADER_BYTES), 0);
        request
    }
}

pub fn header(wanted: u64) -> [u8; HEADER_BYTES] {
    wanted.to_be_bytes()
}

/// What a request asks for, once its first 8 bytes are there.
pub fn wanted(first: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(first.get(..HEADER_BYTES)?.try_into().ok()?))
}

/// One event: `fields` is the inside of a JSON object.
pub fn emit(event: &str, fields: &str) {
    let comma = if fields.is_empty() { "" } else { ", " };
    println!("{{\"event\": \"{event}\"{comma}{fields}}}");
}

/// Processor time of this process so far, all threads.
pub fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// `cpu` is what `cpu_seconds` said when it began.
pub fn emit_downloaded(bytes: u64, began: Instant, cpu: f64) {
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    emit("result", &format!("\"bytes\": {bytes}, \"seconds\": {seconds}, \"cpu_seconds\": {cpu}"));
}

/// What was timed, one value each, with `failed` that did not count.
pub fn emit_times(mut times: Vec<f64>, began: Instant, failed: usize) {
    let seconds = began.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    let at = |part: f64| match times.len() {
        0 => 0.0,
        count => times[((part * count as f64) as usize).min(count - 1)],
    };
    let (p50, p99, count) = (at(0.50), at(0.99), times.len());
    emit(
        "result",
        &format!(
            "\"count\": {count}, \"failed\": {failed}, \"seconds\": {seconds}, \
             \"p50_seconds\": {p50}, \"p99_seconds\": {p99}"
        ),
    );
}

/// The version of a package in Cargo.lock's text.
pub fn locked<'a>(lock: &'a str, package: &str) -> &'a str {
    let name = format!("name = \"{package}\"\nversion = \"");
    let start = lock.find(&name).map_or(lock.len(), |at| at + name.len());
    lock[start..].split('"').next().unwrap_or("")
}

/// Bound, with buffers beyond the system's limit where we may.
pub fn socket(address: SocketAddr) -> Result<UdpSocket, Failure> {
    let socket = UdpSocket::bind(address)?;
    for name in [libc::SO_RCVBUF, libc::SO_SNDBUF, libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        let size = &SOCKET_BYTES as *const libc::c_int as *const libc::c_void;
        // What may not be done leaves the size as it was.
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, size, 4) };
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

pub fn unspecified() -> SocketAddr {
    SocketAddr::from(([0u16; 8], 0))
}

/// `main`: what went wrong becomes an `error` event and exit code 1.
pub fn finish(result: Result<(), Failure>) {
    if let Err(error) = result {
        let text = error.to_string().replace(['"', '\\', '\n'], " ");
        emit("error", &format!("\"error\": \"{text}\""));
        std::process::exit(1);
    }
}
