package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/culvert-mesh/culvert/redirect/cni/install"
)

// leave is the first thing at the end of the agent. After an uninstallation the plugin goes first, so that starting pods
// do not wait for an agent that never comes, then the pods leave the mesh, and at last the host's rules go.
func (c *cluster) leave(ctx context.Context) {
	if !c.agent.Uninstalled(ctx) {
		c.log.Info("pods stay captured for the next agent")
		return
	}
	c.log.Info("the mesh is uninstalled: pods of this node leave it")
	var unclean []string
	c.stopPlugin()
	if c.installer != nil {
		select {
		case <-c.pluginDone:
		case <-ctx.Done():
		}
		if err := c.installer.Uninstall(ctx); err != nil {
			c.log.Error("CNI plugin could not be removed from the node", "error", err)
			unclean = append(unclean, err.Error())
		}
	}
	for _, st := range c.agent.LeaveAll(ctx) {
		c.log.Error("pod is captured still", "pod", st.Pod.String(), "error", st.Err)
		unclean = append(unclean, fmt.Sprintf("pod %s is captured still, and talks to nobody until it is restarted (%v)", st.Pod, st.Err))
	}
	if err := c.host.remove(); err != nil {
		c.log.Error("the host's rules could not be removed", "error", err)
		unclean = append(unclean, err.Error())
	}
	c.left.Store(true)
	lastWords(terminationLog, unclean)
}

// terminationLog is where a container tells the kubelet why it ended.
const terminationLog = "/dev/termination-log"

// maxLastWords is what the kubelet takes of it.
const maxLastWords = 4096

// lastWords says in the pod's status what is left on the node, a line each, for `culvert uninstall`: this takes no
// permission, which may have gone. Outside of a container there is nobody to tell.
func lastWords(path string, lines []string) {
	if len(lines) == 0 {
		return
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return
	}
	text := strings.Join(lines, "\n")
	_, _ = f.WriteString(text[:min(len(text), maxLastWords)])
	_ = f.Close()
}

// removeFiles removes what the agent has made to be called. Directories stay that have something of others in them.
func (c *cluster) removeFiles() {
	_ = os.Remove(c.socket)
	_ = os.Remove(filepath.Dir(c.socket))
	if err := install.RemoveEmpty(filepath.Join(c.settings.procRoot, "1", "root"), c.settings.runDir); err != nil {
		c.log.Info("a directory stays on the node", "error", err)
	}
}
