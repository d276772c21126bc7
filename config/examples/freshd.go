// Package freshd has access tokens from freshd; nothing but the standard library.
package freshd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"
)

type Token struct {
	AccessToken string  `json:"access_token"`
	TokenType   string  `json:"token_type"`
	ExpiresIn   *uint64 `json:"expires_in"` // nil where nobody knows
	Generation  uint64  `json:"generation"`
}

// Problem is what freshd says instead of a token.
type Problem struct {
	Type       string `json:"type"`
	Detail     string `json:"detail"`
	Status     int    `json:"status"`
	Reason     string `json:"reason"`
	RetryAfter int    `json:"retry_after"`
}

func (p *Problem) Error() string { return fmt.Sprintf("%s (%s)", p.Detail, p.Type) }

type Client struct{ http http.Client }

func New(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		for {
			conn, err := d.DialContext(ctx, "unix", socket)
			// The socket's queue is full, as in a storm of others' connections.
			if !errors.Is(err, syscall.EAGAIN) {
				return conn, err
			}
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	return &Client{http.Client{
		Transport: &http.Transport{DialContext: dial, IdleConnTimeout: 90 * time.Second},
		Timeout:   30 * time.Second,
	}}
}

func (c *Client) ask(ctx context.Context, method, user, provider, verb string, body []byte) (*Token, error) {
	address := fmt.Sprintf("http://localhost/v1/users/%s/grants/%s/%s",
		url.PathEscape(user), url.PathEscape(provider), verb)
	request, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	decoder := json.NewDecoder(answer.Body)
	if answer.StatusCode != http.StatusOK {
		problem := new(Problem)
		if err := decoder.Decode(problem); err != nil {
			return nil, err
		}
		return nil, problem
	}
	token := new(Token)
	if err := decoder.Decode(token); err != nil {
		return nil, err
	}
	return token, nil
}

func (c *Client) Token(ctx context.Context, user, provider string) (*Token, error) {
	return c.ask(ctx, http.MethodGet, user, provider, "token", nil)
}

// Refused says that the API answered 401 to old. If the answer has the same generation, there is no newer token.
func (c *Client) Refused(ctx context.Context, user, provider string, old *Token) (*Token, error) {
	body, err := json.Marshal(map[string]uint64{"generation": old.Generation})
	if err != nil {
		return nil, err
	}
	return c.ask(ctx, http.MethodPost, user, provider, "refresh", body)
}
