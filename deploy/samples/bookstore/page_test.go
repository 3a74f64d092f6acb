package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// The four services together show bookinfo's page, in each version of the reviews, and without those that are gone.
func TestPage(t *testing.T) {
	serve := func(setup func(*http.ServeMux)) string {
		mux := http.NewServeMux()
		setup(mux)
		s := httptest.NewServer(mux)
		t.Cleanup(s.Close)
		return s.URL
	}
	gone := "http://127.0.0.1:1"
	detailsURL, ratingsURL := serve(details), serve(ratings)
	for _, tt := range []struct {
		name, version, ratings, details string
		want, without                   []string
	}{
		{"v1", "v1", ratingsURL, detailsURL, []string{"<title>Simple Bookstore App</title>", "William Shakespeare", "Reviewer2"}, []string{"★"}},
		{"v2", "v2", ratingsURL, detailsURL, []string{`data-stars="5" data-color="black"`, "★★★★☆"}, []string{`data-color="red"`}},
		{"v3", "v3", ratingsURL, detailsURL, []string{`data-color="red"`}, []string{"currently unavailable"}},
		{"no-ratings", "v3", gone, detailsURL, []string{"Ratings service is currently unavailable", "Reviewer1"}, []string{"★"}},
		{"no-details", "v1", ratingsURL, gone, []string{"product details are currently unavailable", "Reviewer1"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := backend{client: &http.Client{}, ratings: tt.ratings, details: tt.details}
			b.reviews = serve(func(mux *http.ServeMux) { reviews(mux, b, tt.version) })
			resp, err := http.Get(serve(func(mux *http.ServeMux) { productpage(mux, b) }) + "/productpage")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range tt.want {
				if !strings.Contains(string(body), part) {
					t.Errorf("%q is missing on\n%s", part, body)
				}
			}
			for _, part := range tt.without {
				if strings.Contains(string(body), part) {
					t.Errorf("%q is on the page", part)
				}
			}
		})
	}
}
