// The other side of the bench `start`: one control plane of controller-runtime's envtest, used as its
// documentation says, and timed. ../start.rs has the protocol.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "envtest:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	// By the session the bench finds what is left of it, should this process die: envtest's servers
	// outlive it. It fails only for the leader of a group, which nobody made this.
	if _, err := syscall.Setsid(); err != nil {
		return fmt.Errorf("begin a session: %w", err)
	}
	// Or an answer that nobody reads any more would end it, but not the servers.
	signal.Ignore(syscall.SIGPIPE)
	var wanted struct {
		Crd    *apiextensionsv1.CustomResourceDefinition `json:"crd"`
		Object *unstructured.Unstructured                `json:"object"`
	}
	orders := bufio.NewReader(os.Stdin)
	line, err := orders.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read what is wanted: %w", err)
	}
	if err := json.Unmarshal(line, &wanted); err != nil {
		return fmt.Errorf("understand what is wanted: %w", err)
	}

	begun := time.Now()
	environment := &envtest.Environment{}
	if wanted.Crd != nil {
		environment.CRDs = []*apiextensionsv1.CustomResourceDefinition{wanted.Crd}
	}
	isUp := true
	defer func() {
		if isUp {
			err = errors.Join(err, environment.Stop())
		}
	}()
	config, err := environment.Start()
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if wanted.Object != nil {
		c, err := client.New(config, client.Options{})
		if err != nil {
			return fmt.Errorf("make a client: %w", err)
		}
		if err := c.Create(context.Background(), wanted.Object); err != nil {
			return fmt.Errorf("create: %w", err)
		}
	}
	if err := tell("up", time.Since(begun)); err != nil {
		return err
	}

	// Whoever asked may be gone: that ends the plane, too.
	if _, err := orders.ReadBytes('\n'); err != nil {
		return fmt.Errorf("wait for the order to stop: %w", err)
	}
	begun, isUp = time.Now(), false
	if err := environment.Stop(); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	return tell("stopped", time.Since(begun))
}

func tell(what string, took time.Duration) error {
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"what": what, "seconds": took.Seconds()})
}
