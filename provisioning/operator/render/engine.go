package main

import (
	"errors"
	"path"
	"regexp"
	"sort"
	"strings"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
)

// Helm's engine parses a chart's templates anew for each rendering, which takes as long as all the rest. So it is kept
// in the middle of one rendering that goes on and on: of a chart in which the real templates are partials, and the one
// file that is not is a loop over a channel of questions. What templates can call and how they fail stays Helm's own.
const loop = `{{ range $question := .Values.questions }}{{ $given := $question.Given $ }}
{{- range $name := $question.Names }}{{ $question.Begin $given $name }}{{ $question.Take $name (include $name $given) }}{{ end }}
{{- $question.Done }}{{ end }}`

const hidden = "_"

// What Helm puts before the message of `fail`: the place in the file that was being made, which here is always the loop.
var place = regexp.MustCompile(`^execution error at \([^)]*\): `)

// A question asks for one server's files.
type question struct {
	Names  []string
	values map[string]any
	files  map[string]string
	done   chan struct{}
}

// Given returns what the templates get: what the loop got, with this question's values. As in Helm, all files share it.
func (q *question) Given(loop map[string]any) map[string]any {
	given := map[string]any{}
	for _, each := range []map[string]any{loop, q.values} {
		for key, value := range each {
			given[key] = value
		}
	}
	return given
}

// Begin says which file comes next.
func (q *question) Begin(given map[string]any, name string) string {
	folder, base := path.Split(name)
	given["Template"] = map[string]any{"Name": folder + strings.TrimPrefix(base, hidden), "BasePath": path.Clean(folder)}
	return ""
}

// Take keeps one file. Go writes "<no value>" for what is missing; Helm takes that away, and so do we.
func (q *question) Take(name, text string) string {
	q.files[name] = strings.ReplaceAll(text, "<no value>", "")
	return ""
}

// Done says that there is no file left.
func (q *question) Done() string {
	close(q.done)
	return ""
}

// A resident is an engine that has parsed a chart's templates. One question at a time.
type resident struct {
	chart     *chart.Chart
	names     []string
	questions chan *question
	ended     chan error
}

func reside(loaded *chart.Chart) (*resident, error) {
	if len(loaded.Dependencies()) > 0 {
		return nil, errors.New("charts inside of the chart are not supported")
	}
	kept := &resident{chart: &chart.Chart{Metadata: loaded.Metadata, Files: loaded.Files}}
	for _, file := range loaded.Templates {
		folder, base := path.Split(file.Name)
		if strings.HasSuffix(base, ".yaml") && !strings.HasPrefix(base, hidden) {
			base = hidden + base
			kept.names = append(kept.names, path.Join(loaded.ChartFullPath(), folder, base))
		}
		kept.chart.Templates = append(kept.chart.Templates, &chart.File{Name: folder + base, Data: file.Data})
	}
	sort.Strings(kept.names)
	kept.chart.Templates = append(kept.chart.Templates, &chart.File{Name: "templates/loop.yaml", Data: []byte(loop)})
	return kept, nil
}

// render returns the text of each file. A failure ends the loop; the next question begins another.
func (r *resident) render(values chartutil.Values) (map[string]string, error) {
	if r.questions == nil {
		r.begin()
	}
	asked := &question{Names: r.names, values: values, files: map[string]string{}, done: make(chan struct{})}
	select {
	case r.questions <- asked:
	case err := <-r.ended:
		return nil, r.failed(err)
	}
	select {
	case <-asked.done:
		return asked.files, nil
	case err := <-r.ended:
		return nil, r.failed(err)
	}
}

func (r *resident) begin() {
	questions, ended := make(chan *question), make(chan error, 1)
	r.questions, r.ended = questions, ended
	go func() {
		_, err := engine.Engine{}.Render(r.chart, chartutil.Values{"Values": map[string]any{"questions": questions}})
		ended <- err
	}()
}

func (r *resident) failed(err error) error {
	r.questions, r.ended = nil, nil
	if err == nil {
		return errors.New("the chart's engine has ended")
	}
	return errors.New(place.ReplaceAllString(err.Error(), ""))
}
