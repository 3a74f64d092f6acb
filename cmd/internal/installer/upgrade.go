package installer

import (
	"context"
	"fmt"

	"helm.sh/helm/v3/pkg/action"
)

// maxHistory is how many revisions Helm keeps.
const maxHistory = 10

// Upgrade changes an installation to this program's chart and the given values, which go over those of the last
// installation. When the new state does not become ready, the last one is restored, unless KeepFailed says otherwise; the
// error says why.
func (i *Installer) Upgrade(ctx context.Context, o Options) error {
	// Nothing is written before all that can be refused was asked.
	if err := i.preflight(ctx, o.CRDs); err != nil {
		return err
	}
	have, err := i.mustBeThere()
	if err != nil {
		return err
	}
	if o.CRDs != OnlyCRDs {
		rehearsal := i.upgrade(o)
		rehearsal.DryRunOption = rehearse
		if _, err := rehearsal.RunWithContext(ctx, release, i.Chart, o.Values); err != nil {
			return i.refused(err)
		}
	}
	if err := i.definitions(ctx, o.CRDs); err != nil || o.CRDs == OnlyCRDs {
		return err
	}
	before := i.present(ctx)
	if _, err := i.upgrade(o).RunWithContext(ctx, release, i.Chart, o.Values); err != nil {
		return i.undoUpgrade(ctx, o, have.Version, fmt.Errorf("apply chart: %w", i.Access.Explain(err)))
	}
	i.say("chart applied in namespace %s: %s → %s", i.Namespace, have.Chart.AppVersion(), i.Chart.AppVersion())
	if !o.Wait {
		return nil
	}
	if err := i.wait(ctx, o.Timeout, before); err != nil {
		return i.undoUpgrade(ctx, o, have.Version, err)
	}
	i.say("Culvert %s is ready", i.Chart.AppVersion())
	return nil
}

func (i *Installer) upgrade(o Options) *action.Upgrade {
	upgrade := action.NewUpgrade(i.Helm)
	upgrade.Namespace = i.Namespace
	upgrade.SkipCRDs = true
	upgrade.Timeout = o.Timeout
	upgrade.MaxHistory = maxHistory
	upgrade.ResetValues = o.ResetValues
	upgrade.ResetThenReuseValues = !o.ResetValues
	upgrade.CleanupOnFail = true
	return upgrade
}

// undoUpgrade restores a revision and returns why the one after it failed.
func (i *Installer) undoUpgrade(ctx context.Context, o Options, revision int, cause error) error {
	if o.KeepFailed {
		return fmt.Errorf("%w\nleft as it is, as asked; culvert upgrade with the old values goes back", cause)
	}
	now, err := i.last()
	if err != nil {
		return fmt.Errorf("%w\nrolling back failed too: %w", cause, err)
	}
	if now == nil || now.Version == revision {
		return cause // refused before anything was changed
	}
	i.say("rolling back to revision %d", revision)
	// The failed revision's pods are there still, and the good ones' may be old.
	before := i.present(context.WithoutCancel(ctx))
	rollback := action.NewRollback(i.Helm)
	rollback.Version = revision
	rollback.Timeout = o.Timeout
	rollback.CleanupOnFail = true
	rollback.MaxHistory = maxHistory
	if err := rollback.Run(release); err != nil {
		return fmt.Errorf("%w\nrolling back failed too: %w", cause, err)
	}
	if o.Wait {
		if err := i.wait(context.WithoutCancel(ctx), o.Timeout, before); err != nil {
			return fmt.Errorf("%w\nrolled back to revision %d, which is not ready either: %w", cause, revision, err)
		}
	}
	return fmt.Errorf("%w\nrolled back to revision %d", cause, revision)
}
