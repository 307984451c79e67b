// A router for tests out of Traefik's own parts: its providers read Ingresses or Gateways from the API server, its muxer says which
// rule a request meets, its TLS manager holds certificates and versions. All of Traefik would be more than twice as many packages to
// compile, for the sake of providers and DNS clients that nobody needs here.
//
// Pods have addresses that nothing here can reach, so a request to address A and port P goes to the unix socket <pods>/A/P.sock.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/traefik/traefik/v3/pkg/config/dynamic"
	"github.com/traefik/traefik/v3/pkg/middlewares/buffering"
	"github.com/traefik/traefik/v3/pkg/middlewares/requestdecorator"
	httpmuxer "github.com/traefik/traefik/v3/pkg/muxer/http"
	"github.com/traefik/traefik/v3/pkg/provider/kubernetes/gateway"
	"github.com/traefik/traefik/v3/pkg/provider/kubernetes/ingress"
	"github.com/traefik/traefik/v3/pkg/safe"
	traefiktls "github.com/traefik/traefik/v3/pkg/tls"
)

const entry = "websecure"

type provider interface {
	Init() error
	Provide(messages chan<- dynamic.Message, pool *safe.Pool) error
}

// router serves the newest configuration; `bodies` is the most bytes of a request's body, 0 for no limit.
type router struct {
	handler atomic.Pointer[http.Handler]
	domains atomic.Pointer[map[string]string]
	certs   *traefiktls.Manager
	options map[string]traefiktls.Options
	pods    http.RoundTripper
	bodies  int64
}

func main() {
	address := flag.String("listen", "127.0.0.1:0", "address to listen on with TLS")
	kind := flag.String("kind", "ingress", "ingress or gateway")
	class := flag.String("class", "public", "the IngressClass")
	pods := flag.String("pods", "", "folder of the pods' sockets")
	bodies := flag.Int64("bodies", 0, "most bytes of a body")
	lowest := flag.String("lowest", "", "lowest TLS version of all hosts, as VersionTLS13; empty for Traefik's own")
	flag.Parse()
	made := &router{certs: traefiktls.NewManager(nil), pods: transport(*pods), bodies: *bodies}
	made.options = map[string]traefiktls.Options{
		"default":    {MinVersion: *lowest},
		"tls13@file": {MinVersion: "VersionTLS13"},
		"tls12@file": {MinVersion: "VersionTLS12"},
	}
	if *lowest == "" {
		made.options["default"] = traefiktls.DefaultTLSOptions
	}
	messages := make(chan dynamic.Message)
	source := sourceOf(*kind, *class, *address)
	must(source.Init())
	must(source.Provide(messages, safe.NewPool(context.Background())))
	listener, err := net.Listen("tcp", *address)
	must(err)
	go made.serve(listener)
	for message := range messages {
		if err := made.take(message.Configuration); err != nil {
			log.Printf("this configuration is not served: %v", err)
		}
	}
}

func sourceOf(kind, class, address string) provider {
	if kind == "ingress" {
		return &ingress.Provider{IngressClass: class}
	}
	return &gateway.Provider{EntryPoints: map[string]gateway.Entrypoint{entry: {Address: address, HasHTTPTLSConf: true}}}
}

// transport dials pods by their sockets.
func transport(pods string) http.RoundTripper {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(pods, host, port+".sock"))
		},
		DisableCompression: true,
	}
}

func (r *router) serve(listener net.Listener) {
	// What rules about hosts look at.
	decorator := requestdecorator.New(nil)
	server := &http.Server{
		Handler: http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
			if handler := r.handler.Load(); handler != nil {
				decorator.ServeHTTP(writer, request, (*handler).ServeHTTP)
				return
			}
			http.NotFound(writer, request)
		}),
		TLSConfig:         &tls.Config{GetConfigForClient: r.tlsFor},
		ReadHeaderTimeout: 10 * time.Second,
	}
	log.Fatal(server.ServeTLS(listener, "", ""))
}

// tlsFor returns the options of the router that has this host, as Traefik's entry point does.
func (r *router) tlsFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	name := "default"
	if domains := r.domains.Load(); domains != nil {
		if own, there := (*domains)[hello.ServerName]; there {
			name = own
		}
	}
	return r.certs.Get("default", name)
}

// take makes one configuration the one that is served.
func (r *router) take(found *dynamic.Configuration) error {
	parser, err := httpmuxer.NewSyntaxParser()
	if err != nil {
		return err
	}
	muxer := httpmuxer.NewMuxer(parser)
	domains := map[string]string{}
	for name, route := range found.HTTP.Routers {
		// A route without an entry point is served by all of them.
		if len(route.EntryPoints) > 0 && !slices.Contains(route.EntryPoints, entry) {
			continue
		}
		if len(route.Middlewares) > 0 {
			return fmt.Errorf("%s wants the middlewares %v, which are not built in here", name, route.Middlewares)
		}
		handler, err := r.service(found.HTTP, route.Service)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		priority := route.Priority
		if priority == 0 {
			priority = httpmuxer.GetRulePriority(route.Rule)
		}
		if err := muxer.AddRoute(route.Rule, route.RuleSyntax, priority, handler); err != nil {
			return err
		}
		if err := optionsOf(route, domains); err != nil {
			return err
		}
	}
	var certificates []*traefiktls.CertAndStores
	if found.TLS != nil {
		certificates = found.TLS.Certificates
	}
	r.certs.UpdateConfigs(context.Background(), nil, r.options, certificates)
	var handler http.Handler = muxer
	r.handler.Store(&handler)
	r.domains.Store(&domains)
	return nil
}

// optionsOf notes the TLS options of a router's hosts. Two for one host make Traefik take the default.
func optionsOf(route *dynamic.Router, domains map[string]string) error {
	if route.TLS == nil || route.TLS.Options == "" {
		return nil
	}
	hosts, err := httpmuxer.ParseDomains(route.Rule)
	if err != nil {
		return err
	}
	for _, host := range hosts {
		if before, there := domains[host]; there && before != route.TLS.Options {
			domains[host] = "default"
			continue
		}
		domains[host] = route.TLS.Options
	}
	return nil
}

// service returns the handler of a service: of several pods or services the first that there is.
func (r *router) service(all *dynamic.HTTPConfiguration, name string) (http.Handler, error) {
	found, there := all.Services[name]
	switch {
	case !there:
		return nil, fmt.Errorf("there is no service %s", name)
	case found.Weighted != nil && len(found.Weighted.Services) > 0:
		first := found.Weighted.Services[0]
		if first.Status != nil {
			return status(*first.Status), nil
		}
		return r.service(all, first.Name)
	case found.LoadBalancer != nil && len(found.LoadBalancer.Servers) == 0:
		return status(http.StatusServiceUnavailable), nil
	case found.LoadBalancer != nil:
		return r.proxy(found.LoadBalancer.Servers[0].URL)
	}
	return nil, errors.New("a kind of service that is not built in here")
}

func (r *router) proxy(address string) (http.Handler, error) {
	target, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(request *httputil.ProxyRequest) {
			request.SetURL(target)
			request.Out.Host = request.In.Host
			request.SetXForwarded()
		},
		Transport: r.pods,
	}
	if r.bodies == 0 {
		return proxy, nil
	}
	return buffering.New(context.Background(), proxy, dynamic.Buffering{MaxRequestBodyBytes: r.bodies}, "bodies")
}

func status(code int) http.Handler {
	return http.HandlerFunc(func(writer http.ResponseWriter, _ *http.Request) { writer.WriteHeader(code) })
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
