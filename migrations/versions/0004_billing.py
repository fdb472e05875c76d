"""Accounts, holds, orders, payments, Stripe's events, and whose turn a job is."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('accounts',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('public_id', sa.Uuid(), nullable=False),
    sa.Column('user_id', sa.BigInteger(), nullable=False),
    sa.Column('posted', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('held', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('owed', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('granted', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('purchased', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('complimentary', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('used', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('version', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('stripe_customer_id', sa.String(length=100), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint('0 <= held AND held <= posted', name=op.f('ck_accounts_held_within_posted')),
    sa.CheckConstraint('owed >= 0', name=op.f('ck_accounts_owed_not_negative')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_accounts')),
    sa.UniqueConstraint('public_id', name=op.f('uq_accounts_public_id')),
    sa.UniqueConstraint('stripe_customer_id', name=op.f('uq_accounts_stripe_customer_id')),
    sa.UniqueConstraint('user_id', name=op.f('uq_accounts_user_id'))
    )
    op.create_table('holds',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('public_id', sa.Uuid(), nullable=False),
    sa.Column('user_id', sa.BigInteger(), nullable=False),
    sa.Column('reference', sa.String(length=200), nullable=False),
    sa.Column('purpose', sa.String(length=20), nullable=False),
    sa.Column('characters', sa.BigInteger(), nullable=False),
    sa.Column('state', sa.String(length=10), server_default='held', nullable=False),
    sa.Column('settled', sa.BigInteger(), nullable=True),
    sa.Column('job_id', sa.BigInteger(), nullable=True),
    sa.Column('order_id', sa.BigInteger(), nullable=True),
    sa.Column('params', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    sa.Column('ended_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint('characters > 0', name=op.f('ck_holds_something')),
    sa.CheckConstraint('settled BETWEEN 0 AND characters', name=op.f('ck_holds_settled_within_hold')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_holds')),
    sa.UniqueConstraint('public_id', name=op.f('uq_holds_public_id')),
    sa.UniqueConstraint('reference', name=op.f('uq_holds_reference'))
    )
    op.create_index('ix_holds_live', 'holds', ['id'], unique=False, postgresql_where=sa.text("state = 'held'"))
    op.create_index('ix_holds_user_id_id', 'holds', ['user_id', 'id'], unique=False)
    op.create_table('payments',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('public_id', sa.Uuid(), nullable=False),
    sa.Column('user_id', sa.BigInteger(), nullable=False),
    sa.Column('order_id', sa.BigInteger(), nullable=True),
    sa.Column('kind', sa.String(length=30), nullable=False),
    sa.Column('state', sa.String(length=20), nullable=False),
    sa.Column('characters', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('amount_cents', sa.BigInteger(), nullable=False),
    sa.Column('currency', sa.String(length=3), nullable=False),
    sa.Column('stripe_session_id', sa.String(length=200), nullable=True),
    sa.Column('stripe_payment_intent', sa.String(length=100), nullable=True),
    sa.Column('stripe_invoice_id', sa.String(length=100), nullable=True),
    sa.Column('refunded_cents', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('refunded_characters', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('dispute_id', sa.String(length=100), nullable=True),
    sa.Column('dispute_state', sa.String(length=30), nullable=True),
    sa.Column('hold_id', sa.BigInteger(), nullable=True),
    sa.Column('paid_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint('amount_cents >= 0 AND characters >= 0', name=op.f('ck_payments_not_negative')),
    sa.CheckConstraint('refunded_cents BETWEEN 0 AND amount_cents', name=op.f('ck_payments_refunded_within_amount')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_payments')),
    sa.UniqueConstraint('public_id', name=op.f('uq_payments_public_id')),
    sa.UniqueConstraint('stripe_invoice_id', name=op.f('uq_payments_stripe_invoice_id')),
    sa.UniqueConstraint('stripe_payment_intent', name=op.f('uq_payments_stripe_payment_intent')),
    sa.UniqueConstraint('stripe_session_id', name=op.f('uq_payments_stripe_session_id'))
    )
    op.create_index(op.f('ix_payments_order_id'), 'payments', ['order_id'], unique=False)
    op.create_index('ix_payments_user_id_id', 'payments', ['user_id', 'id'], unique=False)
    op.create_table('stripe_events',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('public_id', sa.Uuid(), nullable=False),
    sa.Column('event_id', sa.String(length=100), nullable=False),
    sa.Column('type', sa.String(length=80), nullable=False),
    sa.Column('payload', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('occurred_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('state', sa.String(length=10), server_default='pending', nullable=False),
    sa.Column('attempts', sa.Integer(), server_default=sa.text('0'), nullable=False),
    sa.Column('next_attempt_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('waits_for', sa.String(length=200), nullable=True),
    sa.Column('error', sa.Text(), nullable=True),
    sa.Column('handled_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('user_id', sa.BigInteger(), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_stripe_events')),
    sa.UniqueConstraint('event_id', name=op.f('uq_stripe_events_event_id')),
    sa.UniqueConstraint('public_id', name=op.f('uq_stripe_events_public_id'))
    )
    op.create_index('ix_stripe_events_due', 'stripe_events', ['next_attempt_at'], unique=False, postgresql_where=sa.text("state = 'pending'"))
    op.create_index(op.f('ix_stripe_events_user_id'), 'stripe_events', ['user_id'], unique=False)
    op.create_index('ix_stripe_events_waits_for', 'stripe_events', ['waits_for'], unique=False, postgresql_where=sa.text("state = 'parked'"))
    op.create_table('orders',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('public_id', sa.Uuid(), nullable=False),
    sa.Column('user_id', sa.BigInteger(), nullable=False),
    sa.Column('kind', sa.String(length=30), nullable=False),
    sa.Column('state', sa.String(length=20), nullable=False),
    sa.Column('characters', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('characters_bought', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('amount_cents', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('currency', sa.String(length=3), nullable=False),
    sa.Column('quote', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    sa.Column('params', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    sa.Column('stripe_session_id', sa.String(length=200), nullable=True),
    sa.Column('checkout_url', sa.Text(), nullable=True),
    sa.Column('hold_id', sa.BigInteger(), nullable=True),
    sa.Column('project_id', sa.BigInteger(), nullable=True),
    sa.Column('dataset_id', sa.BigInteger(), nullable=True),
    sa.Column('fine_tuning_id', sa.BigInteger(), nullable=True),
    sa.Column('error_code', sa.String(length=60), nullable=True),
    sa.Column('error_message', sa.Text(), nullable=True),
    sa.Column('next_step_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('step_failures', sa.Integer(), server_default=sa.text('0'), nullable=False),
    sa.Column('paid_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('ended_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.ForeignKeyConstraint(['dataset_id'], ['datasets.id'], name=op.f('fk_orders_dataset_id'), ondelete='SET NULL'),
    sa.ForeignKeyConstraint(['fine_tuning_id'], ['fine_tunings.id'], name=op.f('fk_orders_fine_tuning_id'), ondelete='SET NULL'),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_orders_project_id'), ondelete='SET NULL'),
    sa.ForeignKeyConstraint(['user_id'], ['users.id'], name=op.f('fk_orders_user_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_orders')),
    sa.UniqueConstraint('public_id', name=op.f('uq_orders_public_id')),
    sa.UniqueConstraint('stripe_session_id', name=op.f('uq_orders_stripe_session_id'))
    )
    op.create_index('ix_orders_live', 'orders', ['next_step_at'], unique=False, postgresql_where=sa.text("state IN ('pending_payment', 'paid', 'running')"))
    op.create_index('ix_orders_user_id_id', 'orders', ['user_id', 'id'], unique=False)
    op.add_column('jobs', sa.Column('error_context', postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.add_column('contents', sa.Column('error_context', postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.add_column('jobs', sa.Column('weight', sa.Integer(), server_default='1', nullable=False))
    op.add_column('jobs', sa.Column('max_concurrent', sa.Integer(), nullable=True))
    op.create_index('ix_jobs_queue_started_at', 'jobs', ['queue', 'started_at'], unique=False, postgresql_where=sa.text('started_at IS NOT NULL'))
    op.create_index('ix_jobs_turns', 'jobs', ['queue', 'user_id'], unique=False, postgresql_where=sa.text("state IN ('queued', 'running')"))
    op.add_column('ledger_entries', sa.Column('balance_after', sa.BigInteger(), nullable=True))
    _open_accounts()
    op.alter_column('ledger_entries', 'balance_after', nullable=False)
    op.create_index('ix_ledger_entries_user_id_kind_created_at', 'ledger_entries', ['user_id', 'kind', 'created_at'], unique=False)
    op.add_column('subscriptions', sa.Column('cancel_at_period_end', sa.Boolean(), server_default='false', nullable=False))
    op.add_column('subscriptions', sa.Column('changed_at', sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column('subscriptions', 'changed_at')
    op.drop_column('subscriptions', 'cancel_at_period_end')
    op.drop_index('ix_ledger_entries_user_id_kind_created_at', table_name='ledger_entries')
    op.drop_column('ledger_entries', 'balance_after')
    op.drop_index('ix_jobs_queue_started_at', table_name='jobs', postgresql_where=sa.text('started_at IS NOT NULL'))
    op.drop_index('ix_jobs_turns', table_name='jobs', postgresql_where=sa.text("state IN ('queued', 'running')"))
    op.drop_column('jobs', 'max_concurrent')
    op.drop_column('jobs', 'weight')
    op.drop_column('contents', 'error_context')
    op.drop_column('jobs', 'error_context')
    op.drop_index('ix_orders_user_id_id', table_name='orders')
    op.drop_index('ix_orders_live', table_name='orders', postgresql_where=sa.text("state IN ('pending_payment', 'paid', 'running')"))
    op.drop_table('orders')
    op.drop_index('ix_stripe_events_waits_for', table_name='stripe_events', postgresql_where=sa.text("state = 'parked'"))
    op.drop_index(op.f('ix_stripe_events_user_id'), table_name='stripe_events')
    op.drop_index('ix_stripe_events_due', table_name='stripe_events', postgresql_where=sa.text("state = 'pending'"))
    op.drop_table('stripe_events')
    op.drop_index('ix_payments_user_id_id', table_name='payments')
    op.drop_index(op.f('ix_payments_order_id'), table_name='payments')
    op.drop_table('payments')
    op.drop_index('ix_holds_user_id_id', table_name='holds')
    op.drop_index('ix_holds_live', table_name='holds', postgresql_where=sa.text("state = 'held'"))
    op.drop_table('holds')
    op.drop_table('accounts')


def _open_accounts() -> None:
    """What was used before there were accounts cost nothing: one adjustment for each user covers it."""
    op.execute("ALTER TABLE ledger_entries DISABLE TRIGGER ledger_entries_append_only")
    op.execute("""
        UPDATE ledger_entries SET balance_after = running.total FROM (
            SELECT id, sum(characters) OVER (PARTITION BY user_id ORDER BY id) AS total FROM ledger_entries
        ) AS running WHERE running.id = ledger_entries.id
    """)
    op.execute("ALTER TABLE ledger_entries ENABLE TRIGGER ledger_entries_append_only")
    op.execute("""
        INSERT INTO accounts (public_id, user_id, used)
        SELECT gen_random_uuid(), user_id, -sum(characters) FROM ledger_entries GROUP BY user_id
    """)
    op.execute("""
        INSERT INTO ledger_entries (public_id, user_id, kind, reference, characters, balance_after, params)
        SELECT gen_random_uuid(), user_id, 'adjustment', 'opening:' || user_id, used, 0, '{"reason": "opening"}'
        FROM accounts WHERE used <> 0
    """)
