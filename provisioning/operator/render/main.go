// Command render keeps Helm's engine and one chart in memory and renders it for a MatrixServer, over and over.
//
// It reads one JSON request a line on standard input and writes one JSON answer a line on standard output; answers
// may come in another order, so each carries its request's id. It ends when standard input does, so nothing outlives
// the operator. A document whose digest the caller already has is named by its digest alone: its YAML is not even parsed.
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"sigs.k8s.io/yaml"
)

type request struct {
	ID        uint64         `json:"id"`
	Release   string         `json:"release"`
	Namespace string         `json:"namespace"`
	Values    map[string]any `json:"values"`
	Have      []string       `json:"have"`
}

type document struct {
	Digest string          `json:"digest"`
	Object json.RawMessage `json:"object,omitempty"`
}

type answer struct {
	ID        uint64     `json:"id"`
	Documents []document `json:"documents,omitempty"`
	Error     string     `json:"error,omitempty"`
}

const rest = 2 * time.Second

// A set of lines by name, given to the chart as .Capabilities.
type list []string

func (l *list) String() string         { return strings.Join(*l, ",") }
func (l *list) Set(value string) error { *l = append(*l, value); return nil }

func main() {
	log.SetFlags(0)
	folder := flag.String("chart", "", "the chart's folder")
	version := flag.String("kube-version", "v1.34.0", "the API server's version")
	workers := flag.Int("workers", 1, "how many requests are rendered at once; each holds a chart and its schema")
	var kinds list
	flag.Var(&kinds, "api-version", "a group/version, or group/version/Kind, that the API server has (repeatable)")
	flag.Parse()
	// Two dozen small documents at a time: a small heap costs little here and is what the operator's limit counts.
	debug.SetGCPercent(100)
	debug.SetMemoryLimit(20 << 20)
	capabilities, err := capabilitiesOf(*version, kinds)
	if err != nil {
		log.Fatal(err)
	}
	serve(*folder, capabilities, *workers)
}

// trim gives back the heap that a burst needed, and the pages of this program that only its start needed (all of
// Kubernetes' kinds register themselves): two thirds of it. What is needed again is read from the page cache.
func trim() {
	debug.FreeOSMemory()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	for _, line := range strings.Split(string(maps), "\n") {
		var from, to uintptr
		var mode string
		// Never what may be written: its changes would be lost.
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || mode[1] != '-' || !strings.HasSuffix(line, self) {
			continue
		}
		syscall.Syscall(syscall.SYS_MADVISE, from, to-from, syscall.MADV_DONTNEED)
	}
}

func capabilitiesOf(version string, kinds []string) (*chartutil.Capabilities, error) {
	parsed, err := chartutil.ParseKubeVersion(version)
	if err != nil {
		return nil, fmt.Errorf("the API server's version %q can't be read: %w", version, err)
	}
	copied := *chartutil.DefaultCapabilities
	copied.KubeVersion = *parsed
	if len(kinds) > 0 {
		copied.APIVersions = chartutil.VersionSet(kinds)
	}
	return &copied, nil
}

// A chart, and the schema of its values. Helm would compile the schema anew for each render, which takes longer than
// all the rest.
type ready struct {
	chart  *chart.Chart
	engine *resident
	schema *jsonschema.Schema
}

func load(folder string) (*ready, error) {
	loaded, err := loader.Load(folder)
	if err != nil {
		return nil, err
	}
	kept, err := reside(loaded)
	if err != nil {
		return nil, err
	}
	if len(loaded.Schema) == 0 {
		return &ready{chart: loaded, engine: kept}, nil
	}
	found, err := jsonschema.UnmarshalJSON(bytes.NewReader(loaded.Schema))
	if err != nil {
		return nil, err
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("values.schema.json", found); err != nil {
		return nil, err
	}
	schema, err := compiler.Compile("values.schema.json")
	return &ready{chart: loaded, engine: kept, schema: schema}, err
}

func serve(folder string, capabilities *chartutil.Capabilities, workers int) {
	requests := make(chan []byte, workers)
	var writing sync.Mutex
	var group sync.WaitGroup
	out := bufio.NewWriterSize(os.Stdout, 1<<16)
	// What a burst of requests needed goes back to the machine after it.
	idle := time.AfterFunc(rest, trim)
	for range workers {
		// Each has its own copy of the chart: rendering coalesces values into it.
		loaded, err := load(folder)
		if err != nil {
			log.Fatalf("the chart in %s can't be loaded: %v", folder, err)
		}
		group.Add(1)
		go func() {
			defer group.Done()
			for line := range requests {
				text, err := json.Marshal(reply(loaded, capabilities, line))
				if err != nil {
					log.Fatal(err)
				}
				writing.Lock()
				out.Write(append(text, '\n'))
				out.Flush()
				writing.Unlock()
				idle.Reset(rest)
			}
		}()
	}
	trim()
	lines := bufio.NewReaderSize(os.Stdin, 1<<16)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 1 {
			requests <- line
		}
		if err != nil {
			break
		}
	}
	close(requests)
	group.Wait()
}

func reply(loaded *ready, capabilities *chartutil.Capabilities, line []byte) (result answer) {
	var asked request
	// A template that panics must not end the helper for every other server.
	defer func() {
		if fault := recover(); fault != nil {
			result = answer{ID: asked.ID, Error: fmt.Sprintf("the chart's engine failed: %v", fault)}
		}
	}()
	if err := json.Unmarshal(line, &asked); err != nil {
		return answer{ID: asked.ID, Error: "not a request: " + err.Error()}
	}
	documents, err := render(loaded, capabilities, asked)
	if err != nil {
		return answer{ID: asked.ID, Error: err.Error()}
	}
	return answer{ID: asked.ID, Documents: documents}
}

func render(loaded *ready, capabilities *chartutil.Capabilities, asked request) ([]document, error) {
	options := chartutil.ReleaseOptions{Name: asked.Release, Namespace: asked.Namespace, Revision: 1, IsInstall: true}
	if loaded.schema != nil {
		if err := loaded.schema.Validate(asked.Values); err != nil {
			return nil, err
		}
	}
	values, err := chartutil.ToRenderValuesWithSchemaValidation(loaded.chart, asked.Values, options, capabilities, true)
	if err != nil {
		return nil, err
	}
	files, err := loaded.engine.render(values)
	if err != nil {
		return nil, err
	}
	have := make(map[string]bool, len(asked.Have))
	for _, digest := range asked.Have {
		have[digest] = true
	}
	var documents []document
	for _, name := range loaded.engine.names {
		for _, text := range split(files[name]) {
			sum := sha256.Sum256([]byte(text))
			each := document{Digest: hex.EncodeToString(sum[:8])}
			if !have[each.Digest] {
				if each.Object, err = yaml.YAMLToJSON([]byte(text)); err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
			}
			documents = append(documents, each)
		}
	}
	return documents, nil
}

// split returns the documents of a file: what lies between lines that begin with "---", less what has only comments.
func split(text string) []string {
	var found []string
	begin := 0
	keep := func(end int) {
		if each := strings.TrimSpace(text[begin:end]); !empty(each) {
			found = append(found, each)
		}
	}
	for at := 0; at < len(text); {
		next := len(text)
		if line := strings.IndexByte(text[at:], '\n'); line >= 0 {
			next = at + line + 1
		}
		if strings.HasPrefix(text[at:], "---") {
			keep(at)
			begin = at + len("---")
		}
		at = next
	}
	keep(len(text))
	return found
}

// empty says whether a document has nothing but comments.
func empty(text string) bool {
	for _, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			return false
		}
	}
	return true
}
