//! The `perf` protocol on quinn, to be measured beside ours; ../common.rs has the command line.
//!
//! quinn's own settings except: windows that do not bind, AES-128-GCM of aws-lc (its faster provider), socket
//! buffers like ours, the path MTU's search up to --datagram, no session tickets (handshakes are full ones).
//! Segmentation offload is on, congestion control is CUBIC, one thread: both are its defaults or fit one core.

#[path = "../../common.rs"]
mod common;

use common::{Failure, Options};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, EndpointConfig, MtuDiscoveryConfig, TransportConfig, VarInt};
use rustls::crypto::{aws_lc_rs, CryptoProvider};
use rustls::pki_types::{pem::PemObject, CertificateDer, PrivateKeyDer};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::task::JoinSet;

fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1];
    Arc::new(provider)
}

fn transport(options: &Options) -> Arc<TransportConfig> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(options.datagram);
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u64(common::WINDOW_BYTES).unwrap())
        .receive_window(VarInt::from_u64(4 * common::WINDOW_BYTES).unwrap())
        .send_window(common::WINDOW_BYTES)
        .mtu_discovery_config(Some(mtu));
    Arc::new(config)
}

fn endpoint(
    options: &Options,
    server: Option<quinn::ServerConfig>,
    address: std::net::SocketAddr,
) -> Result<Endpoint, Failure> {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(options.datagram.max(1472))?;
    let runtime = quinn::default_runtime().ok_or("no tokio")?;
    Ok(Endpoint::new(config, server, common::socket(address)?, runtime)?)
}

async fn answer(mut send: quinn::SendStream, mut receive: quinn::RecvStream) -> Result<(), Failure> {
    let mut first = Vec::new();
    while let Some(chunk) = receive.read_chunk(usize::MAX, true).await? {
        if first.len() < common::HEADER_BYTES {
            first.extend_from_slice(&chunk.bytes);
        }
    }
    let mut left = common::wanted(&first).ok_or("a request without a header")?;
    while left > 0 {
        let size = left.min(common::CHUNK_BYTES as u64);
        send.write_chunk(bytes::Bytes::from_static(&common::PAYLOAD[..size as usize])).await?;
        left -= size;
    }
    send.finish()?;
    Ok(())
}

async fn serve(options: &Options) -> Result<(), Failure> {
    let certs = CertificateDer::pem_file_iter(&options.cert)?.collect::<Result<Vec<_>, _>>()?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(certs, PrivateKeyDer::from_pem_file(&options.key)?)?;
    tls.alpn_protocols = vec![common::ALPN.to_vec()];
    tls.send_tls13_tickets = 0;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(transport(options));
    let endpoint = endpoint(options, Some(config), options.address)?;
    common::emit("listening", "");
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let connection = incoming.await?;
            while let Ok((send, receive)) = connection.accept_bi().await {
                tokio::spawn(answer(send, receive));
            }
            Ok::<(), quinn::ConnectionError>(())
        });
    }
    Ok(())
}

struct Client {
    endpoint: Endpoint,
    options: Options,
}

impl Client {
    fn new(options: Options) -> Result<Client, Failure> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&options.ca)? {
            roots.add(certificate?)?;
        }
        let mut tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![common::ALPN.to_vec()];
        tls.resumption = rustls::client::Resumption::disabled();
        let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        config.transport_config(transport(&options));
        let mut endpoint = endpoint(&options, None, common::unspecified())?;
        endpoint.set_default_client_config(config);
        Ok(Client { endpoint, options })
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        Ok(self.endpoint.connect(self.options.address, common::SERVER_NAME)?.await?)
    }

    async fn download(&self) -> Result<(), Failure> {
        let connection = self.connect().await?;
        common::emit("begin", "");
        let (mut bytes, began, end) = (0, Instant::now(), self.options.end());
        let cpu = common::cpu_seconds();
        let (mut send, mut receive) = connection.open_bi().await?;
        send.write_all(&common::header(common::FOR_EVER_BYTES)).await?;
        send.finish()?;
        while Instant::now() < end {
            let chunk = receive.read_chunk(usize::MAX, true).await?.ok_or("the stream ended")?;
            bytes += chunk.bytes.len() as u64;
        }
        common::emit_downloaded(bytes, began, cpu);
        Ok(())
    }

    async fn requests(&self) -> Result<(), Failure> {
        let connection = self.connect().await?;
        common::emit("begin", "");
        let (request, mut times) = (self.options.request(), Vec::new());
        let (began, end) = (Instant::now(), self.options.end());
        while Instant::now() < end {
            let asked = Instant::now();
            let (mut send, mut receive) = connection.open_bi().await?;
            send.write_all(&request).await?;
            send.finish()?;
            if receive.read_to_end(1 << 20).await?.len() as u64 != self.options.bytes {
                return Err("an answer of the wrong size".into());
            }
            times.push(asked.elapsed().as_secs_f64());
        }
        common::emit_times(times, began, 0);
        Ok(())
    }

    async fn handshakes(self) -> Result<(), Failure> {
        common::emit("begin", "");
        let (client, end, began) = (Arc::new(self), Instant::now(), Instant::now());
        let end = end + std::time::Duration::from_secs_f64(client.options.seconds);
        let found = Arc::new(Mutex::new((Vec::new(), 0)));
        let mut tasks = JoinSet::new();
        for _ in 0..client.options.concurrency {
            let (client, found) = (client.clone(), found.clone());
            tasks.spawn(async move {
                while Instant::now() < end {
                    let asked = Instant::now();
                    match client.connect().await {
                        Ok(connection) => {
                            found.lock().unwrap().0.push(asked.elapsed().as_secs_f64());
                            connection.close(VarInt::from_u32(0), b"");
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
            "\"library\": \"quinn\", \"version\": \"{}\", \"settings\": \"rustls {} with aws-lc, AES-128-GCM, GSO and \
             GRO, CUBIC, windows 64 MiB, one tokio thread\"",
            common::locked(lock, "quinn"),
            common::locked(lock, "rustls"),
        ),
    );
}

async fn run(options: Options) -> Result<(), Failure> {
    match options.command.as_str() {
        "serve" => serve(&options).await,
        "download" => Client::new(options)?.download().await,
        "requests" => Client::new(options)?.requests().await,
        "handshakes" => Client::new(options)?.handshakes().await,
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
