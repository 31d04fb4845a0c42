// The `perf` protocol on quic-go, to be measured beside ours by `stoq bench peers`; the command line is that of
// ../common.rs.
//
// quic-go's own settings except: windows that do not bind, socket buffers like ours, no session tickets
// (handshakes are full ones). GSO is on (its default on Linux); it searches the path MTU to 1452 bytes and no
// further; congestion control is its own (Reno). AES-128-GCM comes first by Go's own order of TLS 1.3 ciphers.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sort"
	"sync"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"
)

const (
	headerBytes  = 8
	windowBytes  = 64 << 20
	socketBytes  = 8 << 20
	forEverBytes = 1 << 50 // A download that only the clock ends.
	chunkBytes   = 256 << 10
)

type options struct {
	listen, to, cert, key, ca string
	seconds                   float64
	bytes                     uint64
	concurrency, datagram     int
}

func emit(event string, fields map[string]any) {
	line := map[string]any{"event": event}
	for name, value := range fields {
		line[name] = value
	}
	text, _ := json.Marshal(line)
	fmt.Println(string(text))
}

func (o *options) length() time.Duration { return time.Duration(o.seconds * float64(time.Second)) }

func config() *quic.Config {
	return &quic.Config{
		InitialStreamReceiveWindow:     windowBytes,
		MaxStreamReceiveWindow:         windowBytes,
		InitialConnectionReceiveWindow: 4 * windowBytes,
		MaxConnectionReceiveWindow:     4 * windowBytes,
	}
}

// socket has buffers beyond the system's limit where we may.
func socket(address string) (*net.UDPConn, error) {
	local, err := net.ResolveUDPAddr("udp6", address)
	if err != nil {
		return nil, err
	}
	conn, err := net.ListenUDP("udp6", local)
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	return conn, raw.Control(func(fd uintptr) {
		for _, name := range []int{syscall.SO_RCVBUF, syscall.SO_SNDBUF, syscall.SO_RCVBUFFORCE, syscall.SO_SNDBUFFORCE} {
			_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, name, socketBytes)
		}
	})
}

func answer(stream *quic.Stream, payload []byte) {
	defer stream.Close()
	request, err := io.ReadAll(stream)
	if err != nil || len(request) < headerBytes {
		stream.CancelWrite(1)
		return
	}
	for left := binary.BigEndian.Uint64(request); left > 0; {
		size := min(left, uint64(len(payload)))
		if _, err := stream.Write(payload[:size]); err != nil {
			return
		}
		left -= size
	}
}

func serve(o *options) error {
	certificate, err := tls.LoadX509KeyPair(o.cert, o.key)
	if err != nil {
		return err
	}
	conn, err := socket(o.listen)
	if err != nil {
		return err
	}
	listener, err := (&quic.Transport{Conn: conn}).Listen(&tls.Config{
		Certificates:           []tls.Certificate{certificate},
		NextProtos:             []string{"perf"},
		CurvePreferences:       []tls.CurveID{tls.X25519, tls.CurveP256},
		SessionTicketsDisabled: true,
	}, config())
	if err != nil {
		return err
	}
	emit("listening", nil)
	payload := make([]byte, chunkBytes)
	for {
		connection, err := listener.Accept(context.Background())
		if err != nil {
			return err
		}
		go func() {
			for {
				stream, err := connection.AcceptStream(context.Background())
				if err != nil {
					return
				}
				go answer(stream, payload)
			}
		}()
	}
}

type client struct {
	*options
	transport *quic.Transport
	address   net.Addr
	tls       *tls.Config
}

func newClient(o *options) (*client, error) {
	roots, text := x509.NewCertPool(), []byte(nil)
	text, err := os.ReadFile(o.ca)
	if err != nil {
		return nil, err
	}
	if !roots.AppendCertsFromPEM(text) {
		return nil, errors.New("no certificate in " + o.ca)
	}
	address, err := net.ResolveUDPAddr("udp6", o.to)
	if err != nil {
		return nil, err
	}
	conn, err := socket("[::]:0")
	if err != nil {
		return nil, err
	}
	curves := []tls.CurveID{tls.X25519, tls.CurveP256}
	settings := &tls.Config{RootCAs: roots, ServerName: "server", NextProtos: []string{"perf"}, CurvePreferences: curves}
	return &client{o, &quic.Transport{Conn: conn}, address, settings}, nil
}

func (c *client) connect() (*quic.Conn, error) {
	return c.transport.Dial(context.Background(), c.address, c.tls, config())
}

// cpuSeconds is the processor time of this process so far, all threads.
func cpuSeconds() float64 {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}

func (c *client) download() error {
	connection, err := c.connect()
	if err != nil {
		return err
	}
	emit("begin", nil)
	began, cpu := time.Now(), cpuSeconds()
	stream, err := connection.OpenStreamSync(context.Background())
	if err != nil {
		return err
	}
	if _, err := stream.Write(binary.BigEndian.AppendUint64(nil, forEverBytes)); err != nil {
		return err
	}
	if err := stream.Close(); err != nil {
		return err
	}
	buffer, bytes := make([]byte, chunkBytes), 0
	for time.Since(began) < c.length() {
		count, err := stream.Read(buffer)
		if err != nil {
			return err
		}
		bytes += count
	}
	emit("result", map[string]any{
		"bytes": bytes, "seconds": time.Since(began).Seconds(), "cpu_seconds": cpuSeconds() - cpu,
	})
	return nil
}

func (c *client) requests() error {
	connection, err := c.connect()
	if err != nil {
		return err
	}
	emit("begin", nil)
	request := binary.BigEndian.AppendUint64(make([]byte, 0, c.bytes), c.bytes)
	request = append(request, make([]byte, int(c.bytes)-len(request))...)
	began, times := time.Now(), []float64{}
	for time.Since(began) < c.length() {
		asked := time.Now()
		stream, err := connection.OpenStreamSync(context.Background())
		if err != nil {
			return err
		}
		if _, err := stream.Write(request); err != nil {
			return err
		}
		if err := stream.Close(); err != nil {
			return err
		}
		answer, err := io.ReadAll(stream)
		if err != nil {
			return err
		}
		if len(answer) != int(c.bytes) {
			return errors.New("an answer of the wrong size")
		}
		times = append(times, time.Since(asked).Seconds())
	}
	emitTimes(times, began, 0)
	return nil
}

func (c *client) handshakes() error {
	emit("begin", nil)
	var lock sync.Mutex
	var all sync.WaitGroup
	began, times, failed := time.Now(), []float64{}, 0
	for range c.concurrency {
		all.Add(1)
		go func() {
			defer all.Done()
			for time.Since(began) < c.length() {
				asked := time.Now()
				connection, err := c.connect()
				took := time.Since(asked).Seconds()
				lock.Lock()
				if err != nil {
					failed++
				} else {
					times = append(times, took)
				}
				lock.Unlock()
				if err == nil {
					_ = connection.CloseWithError(0, "")
				}
			}
		}()
	}
	all.Wait()
	emitTimes(times, began, failed)
	return nil
}

func emitTimes(times []float64, began time.Time, failed int) {
	seconds := time.Since(began).Seconds()
	sort.Float64s(times)
	at := func(part float64) float64 {
		if len(times) == 0 {
			return 0
		}
		return times[min(int(part*float64(len(times))), len(times)-1)]
	}
	emit("result", map[string]any{
		"count": len(times), "failed": failed, "seconds": seconds, "p50_seconds": at(0.50), "p99_seconds": at(0.99),
	})
}

func version() error {
	info, _ := debug.ReadBuildInfo()
	found := ""
	for _, dependency := range info.Deps {
		if dependency.Path == "github.com/quic-go/quic-go" {
			found = dependency.Version[1:]
		}
	}
	settings := runtime.Version() + ", crypto/tls, AES-128-GCM, GSO, Reno, windows 64 MiB, datagrams to 1452 bytes"
	emit("version", map[string]any{"library": "quic-go", "version": found, "settings": settings})
	return nil
}

func run() error {
	if len(os.Args) < 2 {
		return errors.New("which command? version, serve, download, requests or handshakes")
	}
	o := &options{}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	flags.StringVar(&o.listen, "listen", "", "[ADDRESS]:PORT")
	flags.StringVar(&o.to, "to", "", "[ADDRESS]:PORT")
	flags.StringVar(&o.cert, "cert", "", "PEM")
	flags.StringVar(&o.key, "key", "", "PEM")
	flags.StringVar(&o.ca, "ca", "", "PEM")
	flags.Float64Var(&o.seconds, "seconds", 3, "")
	flags.Uint64Var(&o.bytes, "bytes", 512, "of a request and an answer, 8 at least")
	flags.IntVar(&o.concurrency, "concurrency", 8, "handshakes at a time")
	flags.IntVar(&o.datagram, "datagram", 1452, "taken for the other peers' sake; quic-go has its own limit")
	if err := flags.Parse(os.Args[2:]); err != nil {
		return err
	}
	switch os.Args[1] {
	case "version":
		return version()
	case "serve":
		return serve(o)
	}
	caller, err := newClient(o)
	if err != nil {
		return err
	}
	switch os.Args[1] {
	case "download":
		return caller.download()
	case "requests":
		return caller.requests()
	case "handshakes":
		return caller.handshakes()
	}
	return errors.New(os.Args[1] + " is unknown")
}

func main() {
	if err := run(); err != nil {
		emit("error", map[string]any{"error": err.Error()})
		os.Exit(1)
	}
}
