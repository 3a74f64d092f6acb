package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
)

// backend is how a service reaches the others.
type backend struct {
	details, reviews, ratings string
	client                    *http.Client
}

// forwarded are the headers that bookinfo passes on: those of tracing and the test user's.
func forwarded() []string {
	return []string{"x-request-id", "traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "end-user", "user-agent", "authorization", "cookie"}
}

// get asks another service and decodes its answer into v. The status is 0 when there was no answer.
func (b backend) get(r *http.Request, url string, v any) (status int, err error) {
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	for _, name := range forwarded() {
		if value := r.Header.Get(name); value != "" {
			req.Header.Set(name, value)
		}
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return resp.StatusCode, fmt.Errorf("status %d", resp.StatusCode)
	}
	return resp.StatusCode, json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(v)
}

type book struct {
	ID        int    `json:"id"`
	Author    string `json:"author"`
	Year      int    `json:"year"`
	Type      string `json:"type"`
	Pages     int    `json:"pages"`
	Publisher string `json:"publisher"`
	Language  string `json:"language"`
	ISBN10    string `json:"ISBN-10"`
	ISBN13    string `json:"ISBN-13"`
}

type ratingsOf struct {
	ID      int            `json:"id"`
	Ratings map[string]int `json:"ratings"`
}

type reviewsOf struct {
	ID      string   `json:"id"`
	Pod     string   `json:"podname"`
	Cluster string   `json:"clustername"`
	Reviews []review `json:"reviews"`
}

type review struct {
	Reviewer string  `json:"reviewer"`
	Text     string  `json:"text"`
	Rating   *rating `json:"rating,omitempty"`
}

type rating struct {
	Stars int    `json:"stars,omitempty"`
	Color string `json:"color,omitempty"`
	Error string `json:"error,omitempty"`
}

func details(mux *http.ServeMux) {
	mux.HandleFunc("GET /details/{id}", func(w http.ResponseWriter, r *http.Request) {
		if id, ok := product(w, r); ok {
			writeJSON(w, book{
				ID: id, Author: "William Shakespeare", Year: 1595, Type: "paperback", Pages: 200, Publisher: "PublisherA",
				Language: "English", ISBN10: "1234567890", ISBN13: "123-1234567890",
			})
		}
	})
}

func ratings(mux *http.ServeMux) {
	mux.HandleFunc("GET /ratings/{id}", func(w http.ResponseWriter, r *http.Request) {
		if id, ok := product(w, r); ok {
			writeJSON(w, ratingsOf{ID: id, Ratings: map[string]int{"Reviewer1": 5, "Reviewer2": 4}})
		}
	})
}

// reviews of v1 have no stars, those of v2 black and of v3 red ones.
func reviews(mux *http.ServeMux, b backend, version string) {
	color := map[string]string{"v2": "black", "v3": "red"}[version]
	mux.HandleFunc("GET /reviews/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, ok := product(w, r)
		if !ok {
			return
		}
		answer := reviewsOf{ID: strconv.Itoa(id), Pod: os.Getenv("HOSTNAME"), Cluster: os.Getenv("CLUSTER_NAME"), Reviews: []review{
			{Reviewer: "Reviewer1", Text: "An extremely entertaining play by Shakespeare. The slapstick humour is refreshing!"},
			{Reviewer: "Reviewer2", Text: "Absolutely fun and entertaining. The play lacks thematic depth when compared to other plays by Shakespeare."},
		}}
		if color != "" {
			var known ratingsOf
			_, err := b.get(r, b.ratings+"/ratings/"+strconv.Itoa(id), &known)
			for i := range answer.Reviews {
				answer.Reviews[i].Rating = &rating{Stars: known.Ratings[answer.Reviews[i].Reviewer], Color: color}
				if err != nil {
					answer.Reviews[i].Rating = &rating{Error: "Ratings service is currently unavailable"}
				}
			}
		}
		writeJSON(w, answer)
	})
}

// product is the number in the path; anything else is answered here.
func product(w http.ResponseWriter, r *http.Request) (int, bool) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil || id < 0 {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": "please provide numeric product ID"})
		return 0, false
	}
	return id, true
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client is gone
}
