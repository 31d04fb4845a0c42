//! The `perf` protocol on s2n-quic, to be measured beside ours; ../common.rs has the command line.
//!
//! s2n-quic's own settings except: windows that do not bind, s2n-tls (its recommended provider), socket buffers
//! like ours, the path MTU's search up to --datagram. Segmentation and receive offload are on, congestion
//! control is CUBIC, one thread.

#[path = "../../common.rs"]
mod common;

use common::{Failure, Options};
use s2n_quic::client::{Client, Connect};
use s2n_quic::provider::io::tokio::Provider as Io;
use s2n_quic::provider::limits::Limits;
use s2n_quic::provider::tls::s2n_tls;
use s2n_quic::stream::BidirectionalStream;
use s2n_quic::{Connection, Server};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

fn io(options: &Options, address: std::net::SocketAddr) -> Result<Io, Failure> {
    const HEADERS_BYTES: u16 = 48; // IPv6 and UDP: its MTU is the path's, ours a datagram's.
    let builder = Io::builder().with_rx_socket(common::socket(address)?)?;
    Ok(builder.with_max_mtu(options.datagram + HEADERS_BYTES)?.build()?)
}

fn limits() -> Result<Limits, Failure> {
    Ok(Limits::new()
        .with_data_window(4 * common::WINDOW_BYTES)?
        .with_bidirectional_local_data_window(common::WINDOW_BYTES)?
        .with_bidirectional_remote_data_window(common::WINDOW_BYTES)?
        .with_max_send_buffer_size(4 << 20)?
        .with_max_open_local_bidirectional_streams(1000)?
        .with_max_open_remote_bidirectional_streams(1000)?)
}

async fn answer(mut stream: BidirectionalStream) -> Result<(), Failure> {
    let mut first = Vec::new();
    while let Some(chunk) = stream.receive().await? {
        if first.len() < common::HEADER_BYTES {
            first.extend_from_slice(&chunk);
        }
    }
    let mut left = common::wanted(&first).ok_or("a request without a header")?;
    while left > 0 {
        let size = left.min(common::CHUNK_BYTES as u64);
        stream.send(bytes::Bytes::from_static(&common::PAYLOAD[..size as usize])).await?;
        left -= size;
    }
    stream.finish()?;
    Ok(())
}

async fn serve(options: &Options) -> Result<(), Failure> {
    let tls = s2n_tls::Server::builder()
        .with_certificate(Path::new(&options.cert), Path::new(&options.key))?
        .with_application_protocols([common::ALPN].iter())?
        .build()?;
    let mut server = Server::builder()
        .with_tls(tls)?
        .with_io(io(options, options.address)?)?
        .with_limits(limits()?)?
        .start()?;
    common::emit("listening", "");
    while let Some(mut connection) = server.accept().await {
        tokio::spawn(async move {
            while let Ok(Some(stream)) = connection.accept_bidirectional_stream().await {
                tokio::spawn(answer(stream));
            }
        });
    }
    Ok(())
}

struct Caller {
    client: Client,
    options: Options,
}

impl Caller {
    fn new(options: Options) -> Result<Caller, Failure> {
        let tls = s2n_tls::Client::builder()
            .with_certificate(Path::new(&options.ca))?
            .with_application_protocols([common::ALPN].iter())?
            .build()?;
        let client = Client::builder()
            .with_tls(tls)?
            .with_io(io(&options, common::unspecified())?)?
            .with_limits(limits()?)?
            .start()?;
        Ok(Caller { client, options })
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let to = Connect::new(self.options.address).with_server_name(common::SERVER_NAME);
        Ok(self.client.connect(to).await?)
    }

    async fn download(&self) -> Result<(), Failure> {
        let mut connection = self.connect().await?;
        common::emit("begin", "");
        let (mut bytes, began, end) = (0, Instant::now(), self.options.end());
        let cpu = common::cpu_seconds();
        let mut stream = connection.open_bidirectional_stream().await?;
        stream.send(bytes::Bytes::copy_from_slice(&common::header(common::FOR_EVER_BYTES))).await?;
        stream.finish()?;
        while Instant::now() < end {
            bytes += stream.receive().await?.ok_or("the stream ended")?.len() as u64;
        }
        common::emit_downloaded(bytes, began, cpu);
        Ok(())
    }

    async fn requests(&self) -> Result<(), Failure> {
        let mut connection = self.connect().await?;
        common::emit("begin", "");
        let (request, mut times) = (bytes::Bytes::from(self.options.request()), Vec::new());
        let (began, end) = (Instant::now(), self.options.end());
        while Instant::now() < end {
            let asked = Instant::now();
            let mut stream = connection.open_bidirectional_stream().await?;
            stream.send(request.clone()).await?;
            stream.finish()?;
            let mut got = 0;
            while let Some(chunk) = stream.receive().await? {
                got += chunk.len() as u64;
            }
            if got != self.options.bytes {
                return Err("an answer of the wrong size".into());
            }
            times.push(asked.elapsed().as_secs_f64());
        }
        common::emit_times(times, began, 0);
        Ok(())
    }

    async fn handshakes(self) -> Result<(), Failure> {
        common::emit("begin", "");
        let (caller, began) = (Arc::new(self), Instant::now());
        let end = began + Duration::from_secs_f64(caller.options.seconds);
        let found = Arc::new(Mutex::new((Vec::new(), 0)));
        let mut tasks = JoinSet::new();
        for _ in 0..caller.options.concurrency {
            let (caller, found) = (caller.clone(), found.clone());
            tasks.spawn(async move {
                while Instant::now() < end {
                    let asked = Instant::now();
                    match caller.connect().await {
                        Ok(connection) => {
                            found.lock().unwrap().0.push(asked.elapsed().as_secs_f64());
                            connection.close(0u32.into());
                        }
                        Err(_) => found.lock().unwrap().1 += 1,
                    }
                }
            });
        }
        tasks.join_all().await;
        let (times, failed) = std::mem::take(&mut *found.lock().unwrap());
        common::emit_times(times, began, failed);
        Ok(())
    }
}

fn version() {
    let lock = include_str!("../Cargo.lock");
    common::emit(
        "version",
        &format!(
            "\"library\": \"s2n-quic\", \"version\": \"{}\", \"settings\": \"s2n-tls {} with aws-lc, its default TLS 1.3 \
             policy (AES-128-GCM first), GSO and GRO, CUBIC, windows 64 MiB, one tokio thread\"",
            common::locked(lock, "s2n-quic"),
            common::locked(lock, "s2n-tls"),
        ),
    );
}

async fn run(options: Options) -> Result<(), Failure> {
    match options.command.as_str() {
        "serve" => serve(&options).await,
        "download" => Caller::new(options)?.download().await,
        "requests" => Caller::new(options)?.requests().await,
        "handshakes" => Caller::new(options)?.handshakes().await,
        other => Err(format!("{other} is unknown").into()),
    }
}

fn main() {
    let result = Options::parse().and_then(|options| {
        if options.command == "version" {
            version();
            return Ok(());
        }
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(options))
    });
    common::finish(result);
}
