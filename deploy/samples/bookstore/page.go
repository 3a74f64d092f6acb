package main

import (
	_ "embed"
	"html/template"
	"net/http"
	"strconv"
)

//go:embed page.html
var pageHTML string

// page is what the template shows.
type page struct {
	User         string
	Book         book
	DetailsError string
	Reviews      []review
	ReviewsError string
	ReviewsPod   string
}

func productpage(mux *http.ServeMux, b backend) {
	look := template.Must(template.New("page").Funcs(template.FuncMap{"stars": stars}).Parse(pageHTML))
	show := func(w http.ResponseWriter, r *http.Request) {
		p := page{User: user(r)}
		if p.User != "" {
			r.Header.Set("end-user", p.User)
		}
		if _, err := b.get(r, b.details+"/details/0", &p.Book); err != nil {
			p.DetailsError = "Sorry, product details are currently unavailable for this book."
		}
		var found reviewsOf
		if _, err := b.get(r, b.reviews+"/reviews/0", &found); err != nil {
			p.ReviewsError = "Sorry, product reviews are currently unavailable for this book."
		}
		p.Reviews, p.ReviewsPod = found.Reviews, found.Pod
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_ = look.Execute(w, p) // the client is gone
	}
	mux.HandleFunc("GET /{$}", show)
	mux.HandleFunc("GET /productpage", show)
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 4096)
		http.SetCookie(w, &http.Cookie{Name: "user", Value: r.PostFormValue("username"), Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode})
		http.Redirect(w, r, "/productpage", http.StatusSeeOther)
	})
	mux.HandleFunc("GET /logout", func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "user", Path: "/", MaxAge: -1})
		http.Redirect(w, r, "/productpage", http.StatusSeeOther)
	})
	api(mux, b)
}

// api are bookinfo's REST paths.
func api(mux *http.ServeMux, b backend) {
	mux.HandleFunc("GET /api/v1/products", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, []map[string]any{{"id": 0, "title": "The Comedy of Errors", "descriptionHtml": "A play by William Shakespeare"}})
	})
	pass := func(base, path string, v func() any) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			id, ok := product(w, r)
			if !ok {
				return
			}
			answer := v()
			if status, err := b.get(r, base+path+strconv.Itoa(id), answer); err != nil {
				if status == 0 {
					status = http.StatusInternalServerError
				}
				http.Error(w, `{"error":"Sorry, product information is currently unavailable."}`, status)
				return
			}
			writeJSON(w, answer)
		}
	}
	mux.HandleFunc("GET /api/v1/products/{id}", pass(b.details, "/details/", func() any { return new(book) }))
	mux.HandleFunc("GET /api/v1/products/{id}/reviews", pass(b.reviews, "/reviews/", func() any { return new(reviewsOf) }))
	mux.HandleFunc("GET /api/v1/products/{id}/ratings", pass(b.ratings, "/ratings/", func() any { return new(ratingsOf) }))
}

func user(r *http.Request) string {
	cookie, err := r.Cookie("user")
	if err != nil {
		return ""
	}
	return cookie.Value
}

// stars is one element for each filled star and one for each empty one.
func stars(n int) []bool {
	row := make([]bool, 5)
	for i := range row {
		row[i] = i < n
	}
	return row
}
